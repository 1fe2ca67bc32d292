"""Traces some steps of a run with JAX's profiler, for XProf."""

import pathlib
import sys
import tempfile

import jax
from etils import epath

from lm.devices.hosts import is_main
from lm.training.config import LogConfig
from lm.training.trainer import Hook, Trainer


class Trace(Hook):
    """Traces config.log.profile_steps steps from config.log.profile_start on into a folder; 0
    steps: none.

    The device is idle before and after them, so that they are whole. Of several processes the first
    traces its own devices. A leg that does not make the step before the first traces nothing.
    """

    def __init__(self, config: LogConfig, folder: epath.Path):
        self.before = config.profile_start - 1
        self.last = self.before + config.profile_steps
        self.folder = folder
        self._trace: tempfile.TemporaryDirectory[str] | None = None

    def is_due(self, trainer: Trainer, number: int) -> bool:
        """Before the first step that is traced, and after the last."""
        return self.last > self.before and number in (self.before, self.last)

    def after_step(self, trainer: Trainer, number: int) -> None:
        """Starts or stops the trace where that is due."""
        if not is_main() or self.last == self.before:
            return
        if number == self.before:
            self._trace = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._trace.name)
        elif number in (self.last, trainer.num_steps):
            self.close()

    def close(self) -> None:
        """Writes the trace, also of a run that ends within it."""
        if self._trace is None:
            return
        trace, self._trace = self._trace, None
        with trace as name:
            jax.profiler.stop_trace()
            # What the profiler writes it writes to a local disk; a workdir may be in a bucket.
            for file in filter(pathlib.Path.is_file, pathlib.Path(name).rglob("*")):
                target = self.folder / file.relative_to(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(file).copy(target, overwrite=True)
        print(f"trace of steps from {self.before + 1} on: {self.folder}", file=sys.stderr)
