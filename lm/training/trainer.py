"""Runs the training loop, which calls hooks for everything besides the update itself."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import jax
import numpy as np

from lm.devices import sharding
from lm.training.announce import announced
from lm.training.program import Program
from lm.training.train_state import Rows, TrainState


class Step(NamedTuple):
    """A step that is known to be over: its number, its batch, and its metrics as numbers."""

    number: int
    rows: Rows
    metrics: dict[str, float]


class Hook:
    """What a trainer calls around its steps. A subclass overrides what it has a use for."""

    @property
    def done(self) -> bool:
        """Whether training ends before the next step."""
        return False

    def on_step(self, trainer: "Trainer", step: Step) -> None:
        """Called once for every step. The state may be that of the step after it."""

    def is_due(self, trainer: "Trainer", number: int) -> bool:
        """Whether this step's state is asked for, so that the next one must wait."""
        return False

    def after_step(self, trainer: "Trainer", number: int) -> None:
        """Called for a step at which some hook is due, and for the last; the state is its state."""


class Trainer:
    """Updates a state batch by batch, and calls its hooks, in their order.

    Attributes:
      program: the compiled step.
      state: the current one; hooks may replace it.
      batches: this process's rows of every batch from the state's step on.
      key: a key of the run, from which every step derives its own.
      num_steps: of the whole run.
      hooks: see `Hook`.
      first: the number of the first step that is made here.
      input_seconds: that the loop has waited for batches.
    """

    def __init__(
        self,
        program: Program,
        state: TrainState,
        batches: Iterator[Mapping[str, np.ndarray]],
        key: jax.Array,
        hooks: Sequence[Hook] = (),
    ):
        self.program, self.state, self.batches, self.key = program, state, batches, key
        self.num_steps, self.hooks = program.config.steps, hooks
        self.first, self.input_seconds = int(state.step) + 1, 0.0

    def next_rows(self) -> dict[str, np.ndarray]:
        """The next batch, of it the rows of this process."""
        begun = time.perf_counter()
        rows = dict(next(self.batches))
        self.input_seconds += time.perf_counter() - begun
        return rows

    def next_batch(self) -> Rows:
        """The next batch, over all devices."""
        return sharding.global_batch(self.program.mesh, self.next_rows())

    def fit(self) -> TrainState:
        """Trains to the last step, or until a hook is done or raises.

        Step k+1 is dispatched before the metrics of step k are fetched, so that the host never
        keeps the device waiting. Only where a hook is due are they fetched at once: nothing is
        evaluated or saved before its step is known to be finite.
        """
        dispatched = None
        for number in range(self.first, self.num_steps + 1):
            if any(hook.done for hook in self.hooks):
                break
            rows = self.next_batch()
            with announced("compiling a step") if number == self.first else nullcontext():
                self.state, metrics = self.program.train_step(self.state, rows, self.key)
            if dispatched is not None:
                self._finish(*dispatched)
            dispatched = (number, rows, metrics)
            if number == self.num_steps or any(hook.is_due(self, number) for hook in self.hooks):
                self._finish(*dispatched)
                dispatched = None
                for hook in self.hooks:
                    hook.after_step(self, number)
        return self.state

    def _finish(self, number: int, rows: Rows, metrics: Mapping[str, jax.Array]) -> None:
        step = Step(number, rows, {name: float(value) for name, value in metrics.items()})
        for hook in self.hooks:
            hook.on_step(self, step)
