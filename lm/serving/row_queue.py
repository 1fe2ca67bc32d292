"""Rows that are computed whole, such as texts to embed: those that wait are computed together,
whoever sent them, in batches of one size and a few lengths.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from lm.devices.sharding import whole
from lm.serving.generation import computing_failed
from lm.serving.weights import Weights
from lm.training.train_state import Params

Arrays = Mapping[str, np.ndarray]  # of one row
# Arrays [B, ...] of rows, by all of the model's parameters, to arrays [B, ...].
Compute = Callable[[Params, dict[str, jax.Array]], Mapping[str, jax.Array]]


class RowProgram(Protocol):
    """What makes the rows of a program."""

    program: ClassVar[str]


class _Waiting(NamedTuple):
    row: Arrays
    result: concurrent.futures.Future[Arrays]


class _Key(NamedTuple):
    """What the rows of a batch have in common."""

    program: str
    adapter: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


class Batch(NamedTuple):
    """Rows that are computed together."""

    program: str
    adapter: int
    waiting: list[_Waiting]


class RowQueue:
    """Rows that wait for a program, by program, shape and adapter."""

    def __init__(self, mesh: Mesh, programs: Mapping[str, tuple[Compute, int]]):
        """Compiles nothing yet.

        Args:
          mesh: the devices.
          programs: by name, and B, the rows of their batches.
        """
        self._mesh = mesh
        self._sizes = {name: size for name, (_, size) in programs.items()}
        self._programs = {
            name: jax.jit(_of_place(compute), out_shardings=whole(mesh))
            for name, (compute, _) in programs.items()
        }
        self._waiting: dict[_Key, collections.deque[_Waiting]] = {}

    def __len__(self) -> int:
        """How many rows wait."""
        return sum(map(len, self._waiting.values()))

    def waits_for(self, adapter: int) -> bool:
        """Whether a row waits for the adapter at a place."""
        return any(key.adapter == adapter for key in self._waiting)

    @property
    def compiled(self) -> int:
        """How many programs have been compiled."""
        return sum(each._cache_size() for each in self._programs.values())  # pyright: ignore

    def put(self, name: str, row: Arrays, adapter: int) -> concurrent.futures.Future[Arrays]:
        """Adds a row for a program; its result comes with a later `finish`."""
        shapes = tuple(sorted((key, value.shape) for key, value in row.items()))
        result: concurrent.futures.Future[Arrays] = concurrent.futures.Future()
        queue = self._waiting.setdefault(_Key(name, adapter, shapes), collections.deque())
        queue.append(_Waiting(row, result))
        return result

    def take(self) -> Batch | None:
        """Removes a batch of those that wait longest; None where all of them were cancelled."""
        key = next(iter(self._waiting))
        queue = self._waiting.pop(key)
        taken = [queue.popleft() for _ in range(min(self._sizes[key.program], len(queue)))]
        if queue:  # behind the others
            self._waiting[key] = queue
        live = [each for each in taken if each.result.set_running_or_notify_cancel()]
        return Batch(key.program, key.adapter, live) if live else None

    def finish(self, weights: Weights, batch: Batch) -> int:
        """Computes a batch and sets its results, or why there are none; how many rows it had."""
        try:
            rows = [each.row for each in batch.waiting]
            found = self.compute(weights, batch.program, rows, batch.adapter)
        except Exception as error:
            logging.exception("Computing rows of %s failed", batch.program)
            for each in batch.waiting:
                each.result.set_exception(computing_failed(error))
            return 0
        for each, outputs in zip(batch.waiting, found, strict=True):
            each.result.set_result(outputs)
        return len(found)

    def compute(
        self, weights: Weights, name: str, rows: Sequence[Arrays], adapter: int
    ) -> list[Arrays]:
        """What a program gives for at most B rows of the same shapes."""
        size = self._sizes[name]
        numbers = np.zeros(size, np.int32)
        numbers[: len(rows)] = 1
        filled = [*rows, *[rows[0]] * (size - len(rows))]
        arrays = {key: np.stack([row[key] for row in filled]) for key in rows[0]}
        with jax.set_mesh(self._mesh):
            found = self._programs[name](weights, np.int32(adapter), arrays | {"row": numbers})
        found = jax.tree.map(np.asarray, found)
        return [{key: value[i] for key, value in found.items()} for i in range(len(rows))]


def _of_place(compute: Compute) -> Callable[..., Mapping[str, jax.Array]]:
    return lambda weights, place, rows: compute(weights.select(place), rows)
