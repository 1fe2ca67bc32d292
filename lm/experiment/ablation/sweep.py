"""Trains the points of an ablation that are not finished, alone or shared with other commands."""

import contextlib
import sys
import time
import traceback
from collections.abc import Sequence

from etils import epath

from lm.checkpoints.run_files import read_result
from lm.config import plain
from lm.data.bucket import make_folder, modified
from lm.data.files import write_text
from lm.devices.hosts import all_fail, from_main, is_main
from lm.errors import Interrupted, UserError, explain, of_storage
from lm.experiment.ablation.folders import trained_otherwise
from lm.experiment.ablation.points import Point
from lm.experiment.claim import POLL, Held, check_exclusive, holder
from lm.experiment.continual.run_experiment import run_experiment
from lm.experiment.point_list import Source, record_points
from lm.experiment.primary_metric import primary_metric
from lm.experiment.run_dir import held, open_workdir
from lm.training.build_model import check_devices
from lm.training.prepare import prepare_corpus


def train_points(
    points: Sequence[Point], share: bool = False, retry: bool = False, source: Source | None = None
) -> list[Point]:
    """Trains every point that is not finished; a point that fails does not stop the others.

    Args:
      points: in one folder, as `find_folders` finds them.
      share: work together with all other sweeps that share this folder, on any machine: each takes
        points that nobody holds, and waits for those of the others, in case one of them stops.
      retry: train points again that failed before; else they stay failed.
      source: where the points come from, for the list of them that the folder keeps.

    Returns:
      The points that failed, now or before, with the traceback in error.txt of their folder.

    Raises:
      UserError: where devices or text fail the first point that is not finished; where a finished
        point has measured other held-out text than its config says.
      Held: where another sweep that does not share is running in the folder, or without `share`
        any other command in one of the points.
      Interrupted: after SIGINT or SIGTERM; the next sweep continues from there.
    """
    folder = points[0].workdir.parent
    if share:
        from_main(lambda: _check_shared(folder))
        sweep = _Sweep(points, retry)
        from_main(lambda: _record(points, source))
        return sweep.share()
    with held(folder):
        from_main(lambda: _check_free(points))
        sweep = _Sweep(points, retry)
        from_main(lambda: _record(points, source))
        for point in points:
            sweep.train(point)
        return sweep.failed


def begin(points: Sequence[Point], retry: bool, source: Source | None) -> list[Point]:
    """Prepares what several processes need that share points; the points that are left to them.

    Args:
      points, retry, source: see `train_points`.

    Raises:
      UserError, Held: as `train_points`; devices are left to those processes.
    """
    _check_shared(points[0].workdir.parent)
    _record(points, source)
    if retry:
        for point in points:
            (point.workdir / "error.txt").unlink(missing_ok=True)
    left = [point for point in points if not (_is_finished(point) or _report(point))]
    if left:
        prepare_corpus(left[0].config)
    return left


def train_shared(points: Sequence[Point], labels: Sequence[str]) -> None:
    """Trains some of the points of a sweep that several processes share.

    Args:
      points, labels: which, with what stands before the name of each.
    """
    _Sweep(points, retry=False, labels=labels).share()


def failed_points(points: Sequence[Point]) -> list[Point]:
    """The points that failed."""
    return [point for point in points if _report(point)]


def _record(points: Sequence[Point], source: Source | None) -> None:
    """Writes which points there are, for `run.py status` and for tables."""
    folder = points[0].workdir.parent
    make_folder(folder)
    record_points(folder, points, source)


class _Sweep:
    """One pass over points, with those that failed."""

    def __init__(self, points: Sequence[Point], retry: bool, labels: Sequence[str] = ()):
        self.points, self.retry, self.failed = points, retry, []
        self.labels = labels or [f"{n}/{len(points)}" for n in range(1, len(points) + 1)]
        # These failed before; those that fail elsewhere meanwhile are not tried again.
        self.before = from_main(lambda: [_report(point) for point in points])
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

    def share(self) -> list[Point]:
        left, shown = list(self.points), ""
        while left:
            taken = []
            for point in left:
                try:
                    self.train(point)
                except Held as error:
                    taken.append((point, error))
            if taken and str(taken[0][1]) != shown:
                shown = str(taken[0][1])
                others = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
                print(f"waiting: {shown.partition(';')[0]}{others}", flush=True)
            left = [point for point, _ in taken]
            if left:
                time.sleep(POLL)
        return sorted(self.failed, key=self.points.index)  # whichever sweep ran each

    def train(self, point: Point) -> None:
        """Trains a point that is not finished."""
        with contextlib.suppress(UserError):  # which fails the point, below
            if open_workdir(point.config, point.workdir) is not None:
                return
        with held(point.workdir):
            self._train(point)

    def _train(self, point: Point) -> None:
        index = self.points.index(point)
        name = f"{self.labels[index]} {point.row} seed {point.seed}"
        report, path = from_main(lambda: _report(point)), point.workdir / "error.txt"
        known = report == self.before[index]
        if report and not (known and self.retry):
            self.failed.append(point)
            when = "before; --retry trains it again" if known else "in another sweep"
            reason = report[0].splitlines()[-1]
            print(f"{name} failed {when}: {reason}", file=sys.stderr, flush=True)
            return
        try:
            if open_workdir(point.config, point.workdir) is not None:
                return  # finished by another sweep
            result = run_experiment(point.config, point.workdir, name)
        except (Interrupted, Held, BrokenPipeError):  # the last: nobody reads what is printed
            raise
        except Exception as error:
            if of_storage(error) or not all_fail(error):  # every other point would fail too
                raise
            self.failed.append(point)
            if is_main():
                write_text(path, traceback.format_exc())
                reason = explain(error) or plain(error)
                print(f"{name} failed: {reason}", file=sys.stderr, flush=True)
        else:
            if is_main():
                path.unlink(missing_ok=True)
            metric, seconds = primary_metric(point.config, available=result), result["seconds"]
            print(f"{name}: {result[metric.name]:.4f} {metric.unit}, {seconds:.0f} s", flush=True)


def _check_shared(folder: epath.Path) -> None:
    if found := holder(folder):
        raise Held(f"{str(found).partition(';')[0]}, which does not share; wait until it ends")
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


def _report(point: Point) -> list[str]:
    """The traceback of a point that failed, and when it was written; [] where it did not."""
    path = point.workdir / "error.txt"
    return [path.read_text().strip(), str(modified(path))] if path.exists() else []
