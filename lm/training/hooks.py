"""Hooks of the trainer that need nothing but the step: the check for NaN, and the log."""

import time
from collections.abc import Callable

import jax
from etils import epath

from lm.config import Config
from lm.errors import UserError
from lm.training.metric_writer import Progress, Writer, open_writer
from lm.training.nan_check import first_nonfinite
from lm.training.profiling.flops import flops_per_token, peak_flops
from lm.training.profiling.memory import peak_memory, step_memory
from lm.training.profiling.step_times import StepTimes
from lm.training.program import Program
from lm.training.trainer import Hook, Step, Trainer


class NanCheck(Hook):
    """Ends a run whose step is not finite, and names the first such tensor and last checkpoint."""

    def __init__(self, last_checkpoint: Callable[[], int | None]):
        self.last_checkpoint = last_checkpoint

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Raises UserError where the step is not finite."""
        if step.metrics["finite"]:
            return
        key = jax.random.fold_in(trainer.key, trainer.state.step)
        name = first_nonfinite(trainer.program, trainer.state, step.rows, key)
        kept = self.last_checkpoint()
        raise UserError(
            f"step {step.number}: the loss or its gradient is not finite; first: "
            f"{name}. Last good checkpoint: {'none' if kept is None else f'step {kept}'}; begin "
            "again in another --workdir with a lower config.optimizer.learning_rate or a clip_norm"
        )


class Log(Hook):
    """Writes metrics and speed when they are due, and moves the progress bar; `writer` is None in
    processes other than the first.
    """

    def __init__(self, program: Program, writer: Writer | None, progress: Progress):
        self.every, self.writer, self.progress = program.config.log.every, writer, progress
        self.flops, self.peak = flops_per_token(program), peak_flops()
        self.devices, self.times = program.mesh.local_devices, StepTimes()
        self._memory: int | None = None
        self._restart()

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Tokens per second are of the steps since the last line or evaluation, the step times of
        those since the last line; no step that compiled counts.
        """
        number, metrics = step.number, dict(step.metrics)
        del metrics["finite"]
        self.tokens += metrics.pop("tokens")
        speed = self.tokens / (time.perf_counter() - self.clock)
        utilization = speed * self.flops / self.peak if self.peak else None
        self.progress.update(metrics["train/loss"], speed, utilization)
        compiled = number == trainer.first
        due = number % self.every == 0 or number == 1
        if not compiled:
            self.times.add(trainer.input_seconds)
        if due and not compiled:
            metrics["tokens_per_second"] = round(speed, 1)
            metrics |= self.times.take()
            if utilization is not None:
                metrics["perf/mfu"] = round(utilization, 4)
        if due and (peak := peak_memory(self.devices)) is not None:
            metrics["perf/peak_memory"] = peak
        if due and self.writer is not None:
            self.writer.write(number, metrics)
        if compiled:
            self._memory = step_memory(trainer.program, trainer.state, step.rows, trainer.key)
        if due or compiled:
            self._restart()
        if compiled:
            self.times.restart(trainer.input_seconds)

    def after_step(self, trainer: Trainer, number: int) -> None:
        """What other hooks took is no time of training."""
        self._restart()
        self.times.restart(trainer.input_seconds)

    def step_memory(self, trainer: Trainer) -> int | None:
        """Bytes of a compiled step, also where no step was left to make; None where unknown."""
        if self._memory is None:
            rows = trainer.next_batch()
            self._memory = step_memory(trainer.program, trainer.state, rows, trainer.key)
        return self._memory

    def sync(self) -> None:
        """Leaves every line where the workdir is."""
        if self.writer is not None:
            self.writer.sync()

    def close(self) -> None:
        """Leaves every line on disk, and takes the bar off the terminal."""
        self.progress.close()
        if self.writer is not None:
            self.writer.close()

    def _restart(self) -> None:
        self.clock, self.tokens = time.perf_counter(), 0.0


def open_log(
    config: Config, program: Program, workdir: epath.Path, start: int, evaluated: int, label: str
) -> Log:
    """The log of a run that was trained to step `start` and evaluated to `evaluated`."""
    progress = Progress(program.config.steps, start, label)
    return Log(program, open_writer(config, workdir, start, evaluated), progress)
