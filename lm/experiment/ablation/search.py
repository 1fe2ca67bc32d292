"""Searches for the best values of config keys by trials that a study of Optuna suggests, in one or
many processes.

What is finished is known from the folders of the points alone: a trial that a lost worker has left
is taken up where it stopped, and one that is in a folder already is not trained again.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Sequence

from etils import epath

from lm.checkpoints.identity import content_hash
from lm.checkpoints.run_files import read_result
from lm.config import Config
from lm.data.bucket import make_folder
from lm.devices.hosts import process_count
from lm.errors import UserError, counted
from lm.experiment.ablation.draw import Distribution, distributions
from lm.experiment.ablation.folders import find_folders
from lm.experiment.ablation.optuna_study import Study, Trial
from lm.experiment.ablation.points import Ablation, Point, make_points, row_label
from lm.experiment.ablation.sweep import check_shared, failed_points, train_point
from lm.experiment.claim import POLL, Held, holder
from lm.experiment.point_list import Source, record_points
from lm.experiment.primary_metric import PrimaryMetric, primary_metric

JOURNAL = "study.journal"  # in the workdir, unless --study names another place


@dataclasses.dataclass(frozen=True)
class Search:
    """A search.

    Attributes:
      config: around which it varies.
      ablation: its seeds and metrics; it has one row.
      drawn: the texts of --draw.
      trials: how many.
      workdir: of the points.
      study: a file or URL of the study; None: a journal in the workdir.
      source: see `train_points`.
    """

    config: Config
    ablation: Ablation
    drawn: Sequence[str]
    trials: int
    workdir: epath.Path
    study: str | None = None
    source: Source | None = None


def run_search(search: Search) -> int:
    """Works on a search until all its trials have ended, beside all other commands that do so, and
    prints what was found.

    Returns:
      How many trials have failed.

    Raises:
      UserError: the search is impossible, Optuna is missing, or the study is of another search.
      Interrupted: after SIGINT or SIGTERM; the same command goes on.
    """
    _check(search)
    check_shared(search.workdir)
    make_folder(search.workdir)
    worker = _Worker(search, distributions(search.drawn))
    worker.work()
    print("\n".join(worker.summary()))
    return sum(each.state == "fail" for each in worker.study.trials())


def _check(search: Search) -> None:
    if len(search.ablation.rows) > 1:
        raise UserError(
            f"--search varies around one config, and there are {len(search.ablation.rows)} rows; "
            "leave out --vary, and use a config without sweep()"
        )
    if process_count() > 1:
        raise UserError("--search is not of several hosts; start the same command on each of them")
    where = search.study or str(search.workdir)
    if where.startswith(("gs://", "s3://")):
        raise UserError(
            f"a study is no object of a bucket, such as {where}; give a local file or the URL of a "
            "database by --study, such as postgresql://USER@HOST/NAME"
        )


class _Worker:
    def __init__(self, search: Search, found: Sequence[Distribution]):
        self.search, ablation = search, search.ablation
        self.metric: PrimaryMetric = primary_metric(search.config, ablation.metrics[0])
        self.points: dict[int, list[Point]] = {}
        about = {
            "config": content_hash(search.config),
            "draw": sorted(search.drawn),
            "seeds": list(ablation.seeds),
            "metric": self.metric.name,
        }
        where = search.study or str(search.workdir / JOURNAL)
        self.study = Study(where, found, self.metric.lower_is_better, about)

    def work(self) -> None:
        """Trains trials until all that are wanted have ended."""
        told = None
        while True:
            running = self._running()
            free = [each for each in running if self._holder(each) is None]
            trial = free[0] if free else self.study.ask(self.search.trials)
            if trial is not None:
                self._record()
                self._train(trial)
                continue
            if not (running := self._running()):  # again: others have asked meanwhile
                return
            error = next(filter(None, map(self._holder, running)), None)
            if error is not None and error.finding != told:
                told = error.finding
                print(f"waiting: {told}", flush=True)
            time.sleep(POLL)

    def _running(self) -> list[Trial]:
        return [each for each in self.study.trials() if each.state == "running"]

    def _train(self, trial: Trial) -> None:
        """Trains what is not finished of a trial, seed by seed, unless another worker does."""
        values: list[float] = []
        points = self._points(trial)
        label = f"trial {trial.number + 1}: {row_label(trial.overrides)}"
        if not points:
            return None
        for point in points:
            if failed_points([point]):
                return self.study.tell(trial.number, None, "fail")
            result = read_result(point.workdir)
            if result is None:
                try:
                    failed = train_point(point)
                except Held:
                    return None
                if failed:
                    return self.study.tell(trial.number, None, "fail")
                result = read_result(point.workdir)
            if result is None or self.metric.name not in result:
                raise UserError(f"{point.workdir} has no {self.metric.name}; choose another METRIC")
            values.append(float(result[self.metric.name]))
            means = [_mean(values[:number]) for number in range(1, len(values) + 1)]
            last = len(values) == len(points)
            if self.study.is_hopeless(trial.number, means) and not last:
                print(f"{label}: pruned after {counted(len(values), 'seed')}", flush=True)
                return self.study.tell(trial.number, None, "pruned")
        print(f"{label}: {_mean(values):.4f} {self.metric.unit}", flush=True)
        return self.study.tell(trial.number, _mean(values), "complete")

    def summary(self) -> list[str]:
        """How the trials ended, and the best of them."""
        self._record()
        trials = self.study.trials()
        states = [each.state for each in trials]
        numbers = {
            state: states.count(name)
            for name, state in (("complete", "complete"), ("pruned", "pruned"), ("fail", "failed"))
        }
        lines = [", ".join(f"{n} {state}" for state, n in numbers.items() if n)]
        lines[0] = f"{counted(len(trials), 'trial')}: {lines[0]}"
        complete = [each for each in trials if each.value is not None]
        sign = 1 if self.metric.lower_is_better else -1
        if best := min(complete, key=lambda each: sign * (each.value or 0.0), default=None):
            flags = " ".join(f"--config.{key}={value}" for key, value in best.overrides.items())
            lines.append(
                f"best: {row_label(best.overrides)}, {best.value:.4f} {self.metric.unit} over "
                f"{counted(len(self.search.ablation.seeds), 'seed')}, too good by the luck of the "
                f"best; use {flags}"
            )
        return lines

    def _points(self, trial: Trial) -> list[Point]:
        """The points of a trial, one for each seed; [] where its config is impossible."""
        if trial.number not in self.points:
            search = self.search
            rows = dataclasses.replace(search.ablation, rows=[trial.overrides], settings=())
            try:
                made = make_points(search.config, rows, search.workdir)
            except UserError as error:  # such as a width that heads do not divide
                print(f"trial {trial.number + 1} failed: {error}", file=sys.stderr, flush=True)
                self.study.tell(trial.number, None, "fail")
                made = []
            self.points[trial.number] = find_folders(made) if made else []
        return self.points[trial.number]

    def _holder(self, trial: Trial) -> Held | None:
        """Who is at work on a trial."""
        errors = (holder(point.workdir) for point in self._points(trial))
        return next((error for error in errors if error is not None), None)

    def _record(self) -> None:
        """Writes which points there are, for `run.py status`."""
        wanted = {
            point.workdir: point  # one folder for trials of the same values
            for trial in self.study.trials()
            for point in self._points(trial)
            if trial.state in ("running", "complete") or point.workdir.exists()
        }
        record_points(self.search.workdir, list(wanted.values()), self.search.source)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
