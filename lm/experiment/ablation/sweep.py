"""Trains the points of an ablation that are not finished, alone or shared with other commands."""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from lm.checkpoints.run_files import read_result
from lm.devices.hosts import all_fail, from_main, is_main
from lm.errors import Interrupted, UserError, of_storage
from lm.experiment import failures
from lm.experiment.ablation.folders import trained_otherwise
from lm.experiment.ablation.grouping import group_points
from lm.experiment.ablation.points import Point
from lm.experiment.claim import POLL, Held, check_exclusive, holder
from lm.experiment.continual.run_experiment import run_experiment
from lm.experiment.point_list import Source, record_points
from lm.experiment.primary_metric import primary_metric
from lm.experiment.replicas import ALONE, Replication, RunOf, check_replication, train_replicas
from lm.experiment.run_dir import held, open_workdir
from lm.training.build_model import check_devices
from lm.training.prepare import prepare_corpus


def train_points(
    points: Sequence[Point],
    share: bool = False,
    retry: bool = False,
    source: Source | None = None,
    replication: Replication = ALONE,
) -> list[Point]:
    """Trains every point that is not finished; a point that fails does not stop the others.

    Args:
      points: in one folder, as `find_folders` finds them.
      share: work together with all other sweeps that share this folder, on any machine: each takes
        points that nobody holds, and waits for those of the others, in case one of them stops.
      retry: train points again that failed before; else they stay failed.
      source: where the points come from, for the list of them that the folder keeps.
      replication: how many points that differ only in the seed are trained in one program.

    Returns:
      The points that failed, now or before, with the traceback in error.txt of their folder.

    Raises:
      UserError: where devices or text fail the first point that is not finished; where a finished
        point has measured other held-out text than its config says.
      Held: where another sweep that does not share is running in the folder, or without `share`
        any other command in one of the points.
      Interrupted: after SIGINT or SIGTERM; the next sweep continues from there.
    """
    check_replication(replication)
    folder = points[0].workdir.parent
    if share:
        from_main(lambda: check_shared(folder))
        sweep = _Sweep(points, retry, replication)
        from_main(lambda: _record(points, source))
        return sweep.share()
    with held(folder):
        from_main(lambda: _check_free(points))
        sweep = _Sweep(points, retry, replication)
        from_main(lambda: _record(points, source))
        for group in sweep.groups:
            sweep.train(group)
        return sweep.all_failed


def begin(points: Sequence[Point], retry: bool, source: Source | None) -> list[Point]:
    """Prepares what several processes need that share points; the points that are left to them.

    Args:
      points, retry, source: see `train_points`.

    Raises:
      UserError, Held: as `train_points`; devices are left to those processes.
    """
    check_shared(points[0].workdir.parent)
    _record(points, source)
    if retry:
        for point in points:
            failures.forget(point.workdir)
    left = [
        point for point in points if not (_is_finished(point) or failures.report(point.workdir))
    ]
    if left:
        prepare_corpus(left[0].config)
    return left


def train_shared(points: Sequence[Point], labels: Sequence[str]) -> None:
    """Trains some of the points of a sweep that several processes share.

    Args:
      points, labels: which, with what stands before the name of each.
    """
    _Sweep(points, retry=False, labels=labels).share()


def train_point(point: Point) -> bool:
    """Trains a point that is not finished, beside other commands in its folder; whether it failed.

    Raises:
      Held: another command is at it; else as `train_points`.
    """
    sweep = _Sweep([point], retry=False)
    sweep.train([point])
    return bool(sweep.failed)


def failed_points(points: Sequence[Point]) -> list[Point]:
    """The points that failed."""
    return [point for point in points if failures.report(point.workdir)]


def _record(points: Sequence[Point], source: Source | None) -> None:
    """Writes which points there are, for `run.py status` and for tables."""
    folder = points[0].workdir.parent
    record_points(folder, points, source)


class _Sweep:
    """One pass over points, with those that failed."""

    def __init__(
        self,
        points: Sequence[Point],
        retry: bool,
        replication: Replication = ALONE,
        labels: Sequence[str] = (),
    ):
        self.points, self.retry, self.replication = points, retry, replication
        self.labels = labels or [f"{n}/{len(points)}" for n in range(1, len(points) + 1)]
        self.failed: list[Point] = []
        self.settled: set[epath.Path] = set()  # folders of points that need no further look
        # These failed before; those that fail elsewhere meanwhile are not tried again.
        self.before = from_main(lambda: [failures.report(point.workdir) for point in points])
        left = [not report or retry for report in self.before]
        waiting = [
            point
            for point, new in zip(points, left, strict=True)
            if not _is_finished(point) and new
        ]
        for line in trained_otherwise(points):
            print(line, flush=True)
        if waiting:
            # What would fail every point, such as missing text, is reported once, before training.
            check_devices(waiting[0].config)
            prepare_corpus(waiting[0].config)
        self.groups = group_points(points, waiting, replication.number)

    @property
    def all_failed(self) -> list[Point]:
        """The points that failed, in the order of all, whichever sweep ran each."""
        return sorted(self.failed, key=self.points.index)

    def share(self) -> list[Point]:
        left, shown = self.groups, None
        while left:
            taken = []
            for group in left:
                try:
                    self.train(group)
                except Held as error:
                    taken.append((group, error))
            # Where this sweep has trained some meanwhile, others may have finished theirs.
            if len(taken) == len(left) and (first := taken[0][1].finding) != shown:
                shown = first
                others = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
                print(f"waiting: {shown}{others}", flush=True)
            left = [group for group, _ in taken]
            if left:
                time.sleep(POLL)
        return self.all_failed

    def train(self, group: Sequence[Point]) -> None:
        """Trains the points of a group that are not finished, together; raises Held once all are
        trained but those that another command holds.
        """
        left, others = [], None
        with contextlib.ExitStack() as claims:
            for point in group:
                if point.workdir in self.settled:
                    continue
                with contextlib.suppress(UserError):  # which fails the point, below
                    if open_workdir(point.config, point.workdir) is not None:
                        continue
                try:
                    claims.enter_context(held(point.workdir))
                except Held as error:
                    others = others or error
                else:
                    left.append(point)
            self._train([point for point in left if self._is_left(point)])
        if others is not None:
            raise others

    def _is_left(self, point: Point) -> bool:
        """Whether a point that is held here has neither failed nor been finished by others."""
        report = from_main(lambda: failures.report(point.workdir))
        known = report == self.before[self.points.index(point)]
        if report and not (known and self.retry):
            self._settle_failed(point)
            when = "before; --retry trains it again" if known else "in another sweep"
            reason = failures.reason_of(report[0])
            print(f"{self._name(point)} failed {when}: {reason}", file=sys.stderr, flush=True)
            return False
        with contextlib.suppress(UserError):
            return open_workdir(point.config, point.workdir) is None
        return True

    def _train(self, points: Sequence[Point]) -> None:
        fatal = None
        for point, outcome in zip(points, self._outcomes(points), strict=True):
            if not isinstance(outcome, Exception):
                self._tell(point, outcome)
            elif _is_fatal(outcome):
                fatal = fatal or outcome
            else:
                self._settle_failed(point)
                if is_main():
                    reason = failures.record(point.workdir, outcome)
                    print(f"{self._name(point)} failed: {reason}", file=sys.stderr, flush=True)
        if fatal is not None:
            raise fatal

    def _outcomes(self, points: Sequence[Point]) -> Sequence[dict[str, Any] | Exception]:
        """The result of each point, or with what its training has ended."""
        runs = [RunOf(each.config, each.workdir, self._name(each)) for each in points]
        if len(runs) > 1:
            return train_replicas(runs, self.replication.replicate)
        try:
            return [run_experiment(*run) for run in runs]
        except Exception as error:
            return [error]

    def _tell(self, point: Point, result: dict[str, Any]) -> None:
        if is_main():
            failures.forget(point.workdir)
        metric, seconds = primary_metric(point.config, available=result), result["seconds"]
        value = f"{result[metric.name]:.4f} {metric.unit}"
        print(f"{self._name(point)}: {value}, {seconds:.0f} s", flush=True)

    def _settle_failed(self, point: Point) -> None:
        self.failed.append(point)
        self.settled.add(point.workdir)

    def _name(self, point: Point) -> str:
        return f"{self.labels[self.points.index(point)]} {point.row} seed {point.seed}"


def _is_fatal(error: Exception) -> bool:
    """Whether an exception ends the sweep: an end that was asked for, or one that would fail every
    other point too. BrokenPipeError: nobody reads what is printed.
    """
    if isinstance(error, Interrupted | Held | BrokenPipeError):
        return True
    return bool(of_storage(error)) or not all_fail(error)


def check_shared(folder: epath.Path) -> None:
    """Raises Held where a command that does not share is at work in a folder."""
    if found := holder(folder):
        raise Held(f"{found.finding}, which does not share; wait until it ends")
    check_exclusive(folder)


def _check_free(points: Sequence[Point]) -> None:
    for point in points:
        if found := holder(point.workdir):
            raise found


def _is_finished(point: Point) -> bool:
    try:
        return open_workdir(point.config, point.workdir) is not None
    except UserError:
        if from_main(lambda: read_result(point.workdir) is None):
            return False  # it fails alone, when its turn comes
        raise
