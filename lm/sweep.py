"""What is an ablation? Rows times seeds: points named by content, trained once, paired by seed."""

import dataclasses
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lm.adopt import adopted
from lm.check import check
from lm.config import Config, content_hash, override, plain
from lm.continual.chain import learn
from lm.errors import Interrupted, UserError
from lm.headline import headline
from lm.step import check_devices
from lm.train import prepare_corpus
from lm.workdir import open_workdir


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
    for overrides in rows:
        row = label(overrides)
        for seed in seeds:
            varied = override(config, {**overrides, "seed": seed})
            try:
                if {"init_from", "tune.adapter_from"} & overrides.keys():
                    varied = adopted(varied, overrides)
                check(varied)
            except UserError as error:
                raise UserError(f"row {row}: {error}") from None
            name = f"{re.sub(r'[^A-Za-z0-9.=,+-]+', '-', row)}-seed{seed}-{content_hash(varied)}"
            if name in seen:
                raise UserError(f"sweep() gives {row} with seed {seed} twice; remove one")
            seen[name] = row
            found.append(Point(row, seed, varied, epath.Path(workdir) / name))
    if not found:
        raise UserError("sweep() and SEEDS give no point; give at least one row and one seed")
    return found


def label(overrides: Mapping[str, Any]) -> str:
    """{"attention.weighting": "softcap", "attention.cap": 20.0} to "weighting=softcap,cap=20.0"."""
    return ",".join(f"{key.split('.')[-1]}={value}" for key, value in overrides.items()) or "as is"


def sweep(points: Sequence[Point]) -> list[Point]:
    """Trains every point that is not finished; a broken one is reported and does not stop the rest.

    Returns:
      The points that broke; their folder's error.txt says why, and the next sweep tries again.

    Raises:
      UserError: where devices or text fail the first point that is not finished.
      Interrupted: after SIGINT or SIGTERM; the next sweep goes on from there.
    """
    waiting = [point for point in points if not (point.workdir / "result.json").exists()]
    if waiting:
        # What would break every point, such as missing text, is said once and before any work.
        check_devices(waiting[0].config)
        prepare_corpus(waiting[0].config)
    broken = []
    for number, point in enumerate(points, start=1):
        report = point.workdir / "error.txt"
        name = f"{number}/{len(points)} {point.row} seed {point.seed}"
        try:
            if open_workdir(point.config, point.workdir) is not None:
                continue
            result = learn(point.config, point.workdir, name)
        except Interrupted:
            raise
        except Exception as error:
            broken.append(point)
            point.workdir.mkdir(parents=True, exist_ok=True)
            report.write_text(traceback.format_exc())
            print(f"{name} broke: {plain(error)}", file=sys.stderr, flush=True)
        else:
            report.unlink(missing_ok=True)
            metric, seconds = headline(point.config), result["seconds"]
            print(f"{name}: {result[metric.name]:.4f} {metric.unit}, {seconds:.0f} s", flush=True)
    return broken
