"""Trains the points of an ablation as tasks of a Ray cluster. The folders of the points are the
truth: a task claims its point as any worker does.
"""

import dataclasses
import importlib
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from lm.config import Config
from lm.data.bucket import absolute
from lm.devices.hosts import process_count
from lm.errors import Interrupted, UserError, counted
from lm.experiment import failures
from lm.experiment.ablation.points import Point
from lm.experiment.ablation.sweep import begin, failed_points, train_shared
from lm.experiment.point_list import Source
from lm.experiment.run_dir import held
from lm.experiment.workers import on_signals
from lm.training.announce import announced

RETRIES = 8  # times that a task is started again whose process or node was lost
_FORWARDED = ("JAX_PLATFORMS", "XLA_FLAGS")
# The platform of JAX_PLATFORMS that a resource of Ray is.
_RESOURCES = {"tpu": "TPU", "cuda": "GPU", "gpu": "GPU", "rocm": "GPU", "cpu": "CPU"}


class Preempted(Exception):
    """A signal has ended a task, which Ray starts again."""


def train_by_ray(
    points: Sequence[Point], retry: bool = False, source: Source | None = None
) -> list[Point]:
    """Trains points as tasks, one for each, with as many accelerators as config.mesh asks for.

    The cluster is that of RAY_ADDRESS, or one that was started on this machine by `ray start`, or a
    new one of this machine. Its nodes have the project, the workdir and the text under the same
    paths. What a task prints is shown here. One whose node is lost is started again elsewhere, and
    goes on from the last checkpoint.

    Args:
      points, retry, source: see `lm.experiment.ablation.sweep.train_points`.

    Returns:
      The points that failed, now or before.

    Raises:
      UserError: Ray is not installed, or what every point would meet.
      Held: another command that does not share is at work in the folder.
      SystemExit: with 128 + N after signal N, once all tasks have saved their state.
    """
    if process_count() > 1:
        raise UserError(
            f"--executor=ray: one process starts the tasks, and here are {process_count()}; "
            "run the command on one host of the cluster"
        )
    left = begin(points, retry, source)
    if left:
        ray = _connected()
        _Tasks(ray, points, left).run()
    return failed_points(points)


def _connected() -> ModuleType:
    """The module ray, connected to a cluster."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of two points may be alike
    # Of half a minute each; by default 20, of a cluster that is gone.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            f"--executor=ray needs Ray ({error}): pip install -e '.[sweep]', or use --jobs"
        ) from None
    if not ray.is_initialized():
        variables = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
        try:
            with announced("connecting to Ray"):
                ray.init(runtime_env={"env_vars": variables}, logging_level="warning")
        except (ConnectionError, RuntimeError) as error:
            line = str(error).partition("\n")[0]
            raise UserError(
                f"--executor=ray: the cluster cannot be reached ({line}); start it, or set "
                "RAY_ADDRESS=local for a new one of this machine"
            ) from None
    return ray


class _Tasks:
    """The tasks of points that are not finished."""

    def __init__(self, ray: ModuleType, points: Sequence[Point], left: Sequence[Point]):
        self._ray, self._signal = ray, 0
        numbers = {point.workdir: number for number, point in enumerate(points, start=1)}
        amounts = [_amount(ray, point.config) for point in left]
        _tell_what_is_missing(ray, amounts)
        task = ray.remote(_train)
        self._points = {
            task.options(
                name=f"{point.row} seed {point.seed}",
                max_retries=RETRIES,
                retry_exceptions=[Preempted],
                **_options(amount),
            ).remote(
                _with_absolute_folder(point),
                f"{numbers[point.workdir]}/{len(points)}",
                os.getcwd(),
                amount,
            ): point
            for point, amount in zip(left, amounts, strict=True)
        }

    def run(self) -> None:
        """Waits for all; a signal, and what every point would meet, ends them."""
        waiting = list(self._points)
        with on_signals(self._stop):
            try:
                while waiting:
                    ready, waiting = self._ray.wait(waiting, timeout=1.0)
                    for task in ready:
                        self._finish(task)
            except BaseException:
                self._cancel()
                self._ray.wait(waiting, num_returns=len(waiting), timeout=None)
                raise
        if self._signal:
            raise SystemExit(128 + self._signal)

    def _finish(self, task: object) -> None:
        errors = self._ray.exceptions
        point = self._points[task]
        try:
            self._ray.get(task)
        except errors.TaskCancelledError:
            pass
        except errors.RayTaskError as error:
            if not self._signal:
                raise error.cause from None
        except errors.RayError as error:  # its process or node was lost too often
            if not self._signal:
                with held(point.workdir, wait=True):
                    reason = failures.record(point.workdir, error)
                name = f"{point.row} seed {point.seed}"
                print(f"{name} failed: {reason}", file=sys.stderr, flush=True)

    def _stop(self, number: int) -> None:
        if self._signal:
            signal.signal(number, signal.SIG_DFL)
        self._signal = number
        print("\nstopping all tasks after their step", file=sys.stderr, flush=True)
        self._cancel()

    def _cancel(self) -> None:
        for task in self._points:
            self._ray.cancel(task, force=False)


def _train(point: Point, label: str, folder: str, amount: Mapping[str, int]) -> None:
    """Trains a point, in a process of Ray."""
    try:
        os.chdir(folder)  # in which the paths of a config are
    except OSError as error:
        raise UserError(
            f"a node of the cluster has no folder {folder} ({error.strerror}); give all nodes the "
            "project under the same path"
        ) from None
    if "CPU" in amount:
        os.environ["NPROC"] = str(amount["CPU"])  # the threads of XLA, as Ray counts cores
    try:
        train_shared([point], [label])
    except Interrupted as error:
        raise Preempted(str(error)) from None


def _amount(ray: ModuleType, config: Config) -> dict[str, int]:
    """What a task takes: the devices of the mesh, one where the mesh takes all that there are."""
    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.sequence, config.mesh.tensor)
    chosen = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    there = ray.cluster_resources()
    found = next(kind for kind in ("TPU", "GPU", "CPU") if there.get(kind) or kind == "CPU")
    return {_RESOURCES.get(chosen, found): math.prod(max(size, 1) for size in sizes)}


def _options(amount: Mapping[str, int]) -> dict[str, Any]:
    """The same in the words of Ray."""
    ((kind, number),) = amount.items()
    known = {"CPU": "num_cpus", "GPU": "num_gpus"}
    return {known[kind]: number} if kind in known else {"resources": {kind: number}}


def _tell_what_is_missing(ray: ModuleType, amounts: Sequence[Mapping[str, int]]) -> None:
    """Says so where no node has what a task takes, for which Ray waits, such as an autoscaler."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, number in {item for amount in amounts for item in amount.items()}:
        if not any(node.get(kind, 0) >= number for node in nodes):
            print(
                f"waits for a node with {counted(number, kind)}; the largest of {len(nodes)} has "
                f"{max(node.get(kind, 0) for node in nodes):.0f}",
                flush=True,
            )


def _with_absolute_folder(point: Point) -> Point:
    return dataclasses.replace(point, workdir=absolute(point.workdir))
