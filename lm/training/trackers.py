"""Sends the lines of metrics.jsonl to TensorBoard, Weights & Biases and trackio."""

import importlib
import importlib.util
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from etils import epath

from lm.config import Config, plain, to_dict
from lm.data.bucket import Mirror, in_bucket
from lm.data.files import write_text
from lm.errors import UserError

# In a workdir: the id by which trackers know the run, also when it goes on.
RUN_ID = "run_id.txt"


class Tracker(Protocol):
    """What has every line of a run's metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step."""
        ...

    def close(self) -> None:
        """Hands on what is not yet written."""
        ...


class TensorBoard:
    """Event files in the folder `tensorboard` of a workdir; those of steps after `start` count no
    longer.
    """

    def __init__(self, config: Config, workdir: epath.Path, start: int):
        import tensorboardX

        folder = workdir / "tensorboard"
        self._mirror = Mirror(folder, "events") if in_bucket(workdir) else None
        self._events = tensorboardX.SummaryWriter(
            str(self._mirror.local if self._mirror else folder),
            purge_step=start + 1,
            write_to_disk=True,
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar for each metric."""
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        if self._mirror is not None:
            self._events.flush()
            self._mirror.copy(asked=False)

    def close(self) -> None:
        """Leaves all events on disk."""
        self._events.close()
        if self._mirror is not None:
            self._mirror.close()


class WandB:
    """A run of Weights & Biases, which a run that goes on continues.

    Steps are a metric of their own, the axis of all others, as W&B takes no step twice: what a
    killed run had written after its last checkpoint is written again. WANDB_MODE, WANDB_ENTITY and
    the like are read by wandb itself; offline, its files are in the workdir.
    """

    def __init__(self, config: Config, workdir: epath.Path, start: int):
        wandb: Any = importlib.import_module("wandb")
        run_id = _run_id(workdir)
        self._run = wandb.init(
            project=config.log.project,
            id=run_id,
            name=_run_name(workdir, run_id),
            resume="allow",
            config=to_dict(config),
            dir=None if in_bucket(workdir) else os.fspath(workdir),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of history."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """Waits until everything is sent, or on disk where wandb is offline."""
        self._run.finish()


class Trackio:
    """A run of trackio, which a run that goes on continues."""

    def __init__(self, config: Config, workdir: epath.Path, start: int):
        trackio: Any = importlib.import_module("trackio")
        name = _run_name(workdir, _run_id(workdir))
        settings = to_dict(config)
        project = config.log.project
        self._run = trackio.init(project=project, name=name, config=settings, resume="allow")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Waits until everything is in trackio's database."""
        self._run.finish()


def check_trackers(names: Iterable[str]) -> None:
    """Raises UserError for the first tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(TRACKERS[name].package) is None:
            raise UserError(
                f"config.log.trackers has {name}, which is not installed: "
                'pip install -e ".[tracking]", or leave it out'
            )


def open_trackers(config: Config, workdir: epath.Path, start: int) -> list[Tracker]:
    """The trackers of a run that is at step `start`.

    Raises:
      UserError: where one of them cannot begin, such as W&B without an account.
    """
    opened: list[Tracker] = []
    for name in config.log.trackers:
        try:
            opened.append(TRACKERS[name].open(config, workdir, start))
        except Exception as error:
            for tracker in opened:
                tracker.close()
            if name == "tensorboard":
                raise
            remedy = "set WANDB_MODE=offline, or " if name == "wandb" else ""
            raise UserError(
                f"config.log.trackers: {name} cannot begin a run: {plain(error)}; {remedy}leave it "
                "out"
            ) from error
    return opened


def _run_id(workdir: epath.Path) -> str:
    """The id that a workdir's run has in trackers; drawn where it has none."""
    file = workdir / RUN_ID
    if not file.exists():
        write_text(file, f"{uuid.uuid4().hex[:12]}\n")
    return file.read_text().strip()


def _run_name(workdir: epath.Path, run_id: str) -> str:
    """The last folders of a workdir, and the id, which makes the name one of its own."""
    return "-".join((*workdir.parts[-2:], run_id)).replace("/", "")


class _Row(NamedTuple):
    """A tracker: the package that it needs, and what opens it at a step of a workdir's run."""

    package: str
    open: Callable[[Config, epath.Path, int], Tracker]


TRACKERS: Mapping[str, _Row] = {
    "tensorboard": _Row("tensorboardX", TensorBoard),
    "wandb": _Row("wandb", WandB),
    "trackio": _Row("trackio", Trackio),
}
