"""Hooks of the trainer that need nothing but the step: alarms, NaN, a trace, and the log."""

import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import jax
from etils import epath

from lm.config import Config
from lm.devices.hosts import is_main
from lm.errors import UserError
from lm.training.alarm import AlarmConfig
from lm.training.config import LogConfig
from lm.training.metric_writer import Progress, Writer, open_writer
from lm.training.nan_check import first_nonfinite
from lm.training.profiling.flops import flops_per_token, peak_flops
from lm.training.profiling.memory import peak_memory, step_memory
from lm.training.profiling.step_times import StepTimes
from lm.training.program import Program
from lm.training.trainer import Hook, Step, Trainer


class RollBack(Exception):
    """A step has raised an alarm that takes the run back to an earlier one."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason = step, reason


class Alarm(Hook):
    """Says why steps raise an alarm, once for steps in a row; takes back the run where the policy
    is "rollback", then also where a step is not finite.
    """

    def __init__(self, config: AlarmConfig):
        self.config, self._told = config, False

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Raises RollBack where that is the policy."""
        reason, rolls_back = self._reason(step), self.config.policy == "rollback"
        if reason and rolls_back:
            raise RollBack(step.number, reason)
        if reason and not self._told:
            done = "; its update is left out" if self.config.policy == "skip" else ""
            print(f"step {step.number}: {reason}{done}", file=sys.stderr, flush=True)
        self._told = bool(reason)

    def _reason(self, step: Step) -> str:
        """Why a step raises an alarm; "" where it does not."""
        metrics, config, reasons = step.metrics, self.config, []
        if not config.on:
            return ""
        if config.policy == "rollback" and not metrics["finite"]:
            return "the loss or its gradient is not finite"
        if not metrics["train/alarm"]:
            return ""
        loss, limit = metrics["train/loss"], metrics.get("loss_limit", math.inf)
        if loss > limit:
            reasons.append(f"the loss {loss:.4g} is above {limit:.4g}, by config.alarm.loss_spike")
        norm = metrics["train/gradient_norm"]
        if config.grad_norm and norm > config.grad_norm:
            reasons.append(f"the gradient's norm {norm:.4g} is above config.alarm.grad_norm")
        return " and ".join(reasons)


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
        number = step.number
        metrics = {k: v for k, v in step.metrics.items() if k.startswith("train/")}
        self.tokens += step.metrics["tokens"]
        speed = self.tokens / (time.perf_counter() - self.clock)
        utilization = speed * self.flops / self.peak if self.peak else None
        self.progress.update(metrics["train/loss"], speed, utilization)
        compiled = number == trainer.first
        due = number % self.every == 0 or number == 1 or bool(metrics.get("train/alarm"))
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
