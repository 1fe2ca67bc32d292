"""What is an ablation? Rows times seeds: points named by content, trained once, paired by seed."""

import contextlib
import dataclasses
import re
import sys
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from lm.checkpoints.resolve import adopted
from lm.checkpoints.run_files import read_result
from lm.config import Config, content_hash, override, plain
from lm.data.files import write_text
from lm.errors import Interrupted, UserError, explain, of_storage
from lm.experiment.claim import POLL, Held, holder
from lm.experiment.continual.chain import learn
from lm.experiment.primary_metric import headline
from lm.experiment.run_dir import held, open_workdir
from lm.training.program import prepare_corpus
from lm.training.train_step import check_devices
from lm.training.validate import check


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of an ablation.

    Attributes:
      row: the label of its variant.
      seed: of weights, batches and dropout.
      config: all its knobs.
      workdir: its folder, named by row, seed and the config's hash.
    """

    row: str
    seed: int
    config: Config
    workdir: epath.Path


def points(
    config: Config,
    rows: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    workdir: epath.PathLike,
) -> list[Point]:
    """All points, rows in order and the seeds of a row beside each other; each checked.

    Raises:
      UserError: where a row sets an unknown knob or is impossible, or two rows are the same.
    """
    found, seen = [], {}
    keys = {key for overrides in rows for key in overrides}
    for overrides in rows:
        row = label(overrides, keys)
        for seed in seeds:
            varied = override(config, {**overrides, "seed": seed})
            try:
                if {"init_from", "finetuning.adapter_from"} & overrides.keys():
                    varied = adopted(varied, overrides)
                check(varied)
            except UserError as error:
                raise UserError(f"row {row}: {error}") from None
            name = f"{re.sub(r'[^A-Za-z0-9.=,+-]+', '-', row)}-seed{seed}-{content_hash(varied)}"
            if seen.get((row, seed)) == name:
                raise UserError(f"sweep() gives {row} with seed {seed} twice; remove one")
            if (row, seed) in seen:
                raise UserError(f"sweep() gives two rows that are both called {row}; remove one")
            seen[row, seed] = name
            found.append(Point(row, seed, varied, epath.Path(workdir) / name))
    if not found:
        raise UserError("sweep() and SEEDS give no point; give at least one row and one seed")
    return found


def label(overrides: Mapping[str, Any], keys: Collection[str] = ()) -> str:
    """{"attention.weighting": "softcap", "attention.cap": 20.0} to "weighting=softcap,cap=20.0".

    A key is called by its last part, or where another of `keys`, those of all rows, ends in it, by
    as many more as tell the two apart.
    """
    named = (f"{_short(key, {*keys, *overrides})}={value}" for key, value in overrides.items())
    return ",".join(named) or "as is"


def _short(key: str, keys: Collection[str]) -> str:
    parts = key.split(".")
    ends = (".".join(parts[-number:]) for number in range(1, len(parts)))
    alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return next(alone, key)


def sweep(points: Sequence[Point], share: bool = False) -> list[Point]:
    """Trains every point that is not finished; a broken one is reported and does not stop the rest.

    Args:
      points: in one folder.
      share: the work with all others that do so in this folder, on any machine: each takes the
        points that nobody holds, and waits for the last ones of the others, lest one dies.

    Returns:
      The points that broke; their folder's error.txt says why, and the next sweep tries again.

    Raises:
      UserError: where devices or text fail the first point that is not finished, or a command of
        several processes is to share.
      Held: where another sweep, that does not share, is at work in the folder, or without `share`
        anything else in one of the points.
      Interrupted: after SIGINT or SIGTERM; the next sweep goes on from there.
    """
    folder = points[0].workdir.parent
    if share:
        if jax.process_count() > 1:
            raise UserError("--share is of commands of one process each; leave it out")
        if found := holder(folder):
            raise Held(f"{str(found).partition(';')[0]}, which shares nothing; wait until it ends")
        return _Sweep(points).share()
    with held(folder):
        if jax.process_index() == 0:
            for point in points:
                if found := holder(point.workdir):
                    raise found
        return _Sweep(points).alone()


class _Sweep:
    """One pass over points, with what broke in it."""

    def __init__(self, points: Sequence[Point]):
        self.points, self.broken = points, []
        # What broke before is tried again; what breaks meanwhile, elsewhere, is not.
        self.before = {point.workdir: _report(point) for point in points}
        waiting = [point for point in points if read_result(point.workdir) is None]
        if waiting:
            # What would break every point, such as missing text, is said once, before any work.
            check_devices(waiting[0].config)
            prepare_corpus(waiting[0].config)

    def alone(self) -> list[Point]:
        for point in self.points:
            self.train(point)
        return self.broken

    def share(self) -> list[Point]:
        left, told = list(self.points), ""
        while left:
            taken = []
            for point in left:
                try:
                    self.train(point)
                except Held as error:
                    taken.append((point, error))
            if taken and str(taken[0][1]) != told:
                told = str(taken[0][1])
                others = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
                print(f"waits: {told.partition(';')[0]}{others}", flush=True)
            left = [point for point, _ in taken]
            if left:
                time.sleep(POLL)
        return sorted(self.broken, key=self.points.index)  # whoever was first to each

    def train(self, point: Point) -> None:
        """Trains a point that is not finished."""
        with contextlib.suppress(UserError):  # which breaks the point, below
            if open_workdir(point.config, point.workdir) is not None:
                return
        with held(point.workdir):
            self._train(point)

    def _train(self, point: Point) -> None:
        name = f"{self.points.index(point) + 1}/{len(self.points)} {point.row} seed {point.seed}"
        report, path = _report(point), point.workdir / "error.txt"
        if report and report != self.before[point.workdir]:
            self.broken.append(point)
            print(f"{name} broke elsewhere: {report.splitlines()[-1]}", file=sys.stderr, flush=True)
            return
        try:
            if open_workdir(point.config, point.workdir) is not None:
                return  # Another sweep has just finished it.
            result = learn(point.config, point.workdir, name)
        except (Interrupted, Held):
            raise
        except Exception as error:
            if of_storage(error):  # as every other point would meet it
                raise
            self.broken.append(point)
            write_text(path, traceback.format_exc())
            print(f"{name} broke: {explain(error) or plain(error)}", file=sys.stderr, flush=True)
        else:
            path.unlink(missing_ok=True)
            metric, seconds = headline(point.config, scored=result), result["seconds"]
            print(f"{name}: {result[metric.name]:.4f} {metric.unit}, {seconds:.0f} s", flush=True)


def _report(point: Point) -> str:
    """Why a point broke; empty where it did not."""
    path = point.workdir / "error.txt"
    return path.read_text().strip() if path.exists() else ""
