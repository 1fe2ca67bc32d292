"""Makes the steps of several trainers, whose runs differ only in the seed, by one program."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Wrapped

from lm.devices import sharding
from lm.training.announce import announced
from lm.training.train_state import Rows, TrainState
from lm.training.train_step import Metrics
from lm.training.trainer import Step, Trainer

Tree = TypeVar("Tree")

# How the replicas of a program are computed: one after the other, with the bits that each has
# alone, or as one more axis of every array, which rounds otherwise.
REPLICATE = ("map", "vmap")


class Replica(Trainer):
    """A trainer whose steps are made by `Replicas`, where its state is one of a stack.

    The state is taken out of the stack where it is asked for, and put back where it was replaced.
    """

    _stack: "Replicas | None" = None
    _own: TrainState | None = None
    replaced = False  # since the last step

    @property
    def state(self) -> TrainState:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The current one."""
        if self._own is None:
            assert self._stack is not None
            self._own = self._stack.take(self)
        return self._own

    @state.setter
    def state(self, new: TrainState) -> None:
        self.replaced |= new is not self._own
        self._own = new

    def join(self, stack: "Replicas") -> None:
        """Leaves the state to a stack that has it."""
        self._stack, self._own, self.replaced = stack, None, False

    def is_over(self, number: int) -> bool:
        """Whether there is no such step."""
        return number > self.num_steps or any(hook.done for hook in self.hooks)

    def is_due_after(self, number: int) -> bool:
        """Whether hooks are called after this step."""
        return number == self.num_steps or any(hook.is_due(self, number) for hook in self.hooks)


class Replicas:
    """Trains replicas together, each with its own batches, keys, hooks and number of the step.

    Args:
      replicas: at least one, of one program on one device.
      replicate: one of `REPLICATE`.
    """

    def __init__(self, replicas: Sequence[Replica], replicate: str):
        self.replicas, self.program = replicas, replicas[0].program
        self._step = joint_step(self.program.train_step, replicate)
        self._keys = jnp.stack([each.key for each in replicas])
        shardings = jax.tree.map(lambda x: x.sharding, self.program.abstract_state)
        self._take_state = jax.jit(_take, out_shardings=shardings)
        rows = sharding.batch_sharding(self.program.mesh)
        self._take_rows = jax.jit(_take, out_shardings=rows)
        self._states: TrainState | None = None
        self._rows: list[dict[str, np.ndarray]] = [{} for _ in replicas]

    def take(self, replica: Replica) -> TrainState:
        """The state of one of them, as its own program has it."""
        return self._take_state(self._states, self.replicas.index(replica))

    def fit(self) -> Iterator[tuple[Replica, Exception | None]]:
        """Trains all of them to their ends, and gives each at its end, with the exception that a
        hook has raised; None: it has made its last step, or a hook is done.

        As in `Trainer.fit`, step k+1 is dispatched before the metrics of step k are fetched, unless
        a hook of any is due. The slot of one that has ended is computed on and no longer looked at.
        """
        running, dispatched = list(self.replicas), None
        for made in itertools.count():
            for replica in [each for each in running if each.is_over(each.first + made)]:
                running.remove(replica)
                yield replica, None
            if not running:
                return
            rows = self._next_rows(running)
            with nullcontext() if made else announced("compiling a step of the replicas"):
                self._states, metrics = self._step(self._joined(running), rows, self._keys)
            for replica in self.replicas:
                replica.join(self)
            if dispatched is not None:
                yield from self._finish(running, *dispatched)
            dispatched = made, rows, metrics
            due = [each for each in running if each.is_due_after(each.first + made)]
            if due:
                yield from self._finish(running, *dispatched)
                dispatched = None
                yield from self._after_step(running, due, made)

    def _joined(self, running: Sequence[Replica]) -> TrainState:
        """The states of all, stacked; those that were replaced since the last step are put back."""
        states = self._states
        if states is None or any(each.replaced for each in running):
            states = stack_states(*(each.state for each in self.replicas))
            for replica in self.replicas:
                replica.join(self)
        return states

    def _next_rows(self, running: Sequence[Replica]) -> Rows:
        """The next batch of each, stacked; of those that have ended, their last."""
        for index, replica in enumerate(self.replicas):
            if replica in running or not self._rows[index]:
                self._rows[index] = replica.next_rows()
        stacked = {name: np.stack([rows[name] for rows in self._rows]) for name in self._rows[0]}
        return jax.device_put(stacked, sharding.whole(self.program.mesh))

    def _finish(
        self, running: list[Replica], made: int, rows: Rows, metrics: dict[str, jax.Array]
    ) -> Iterator[tuple[Replica, Exception]]:
        found = {name: np.asarray(values) for name, values in metrics.items()}
        for index, replica in enumerate(self.replicas):
            if replica not in running:
                continue
            own = {name: float(values[index]) for name, values in found.items()}
            step = Step(replica.first + made, self._take_rows(rows, index), own)
            try:
                for hook in replica.hooks:
                    hook.on_step(replica, step)
            except Exception as error:
                running.remove(replica)
                yield replica, error

    def _after_step(
        self, running: list[Replica], due: Sequence[Replica], made: int
    ) -> Iterator[tuple[Replica, Exception]]:
        """Calls the hooks of those that are due: the first of all, then the second of all, so that
        what one evaluates is no time of another's training.
        """
        for hooks in zip(*(each.hooks for each in due), strict=True):
            for replica, hook in zip(due, hooks, strict=True):
                if replica not in running:
                    continue
                try:
                    hook.after_step(replica, replica.first + made)
                except Exception as error:
                    running.remove(replica)
                    yield replica, error


@functools.lru_cache(maxsize=2)
def joint_step(train_step: Wrapped, replicate: str) -> Wrapped:
    """The step of stacked states, batches and keys; donates the states."""

    def mapped(states: TrainState, rows: Rows, keys: jax.Array) -> tuple[TrainState, Metrics]:
        return jax.lax.map(lambda each: train_step(*each), (states, rows, keys))

    step = jax.vmap(train_step) if replicate == "vmap" else mapped
    return jax.jit(step, donate_argnums=0)


@jax.jit
def stack_states(*states: TrainState) -> TrainState:
    """The states of replicas, in their order, as one with a first axis more."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _take(tree: Tree, index: int) -> Tree:
    return jax.tree.map(lambda x: x[index], tree)
