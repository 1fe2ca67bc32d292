"""Chooses the rows of each batch. A training batch is a pure function of (seed, k), whatever step a
run starts from and however many hosts share it; an evaluation reads every row of a fixed sample
once.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from lm.errors import UserError, counted

if TYPE_CHECKING:
    import jax

Batch = dict[str, np.ndarray]
# Numbers of rows, and the share of the drawn ones that come from among them; shares sum to 1.
Groups = Sequence[tuple[np.ndarray, float]]
_THREADS, _AHEAD = 2, 8  # two threads read a few million tokens a second; batches held ready


class RowSource(Protocol):
    """Rows by index, such as `Corpus.rows`: every row has the same keys and shapes."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """One row."""
        ...


def train_batches(
    rows: RowSource,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    groups: Groups | None = None,
    places: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields batches without end, from batch `start` on; rows are shuffled anew each epoch.

    Batch k holds rows k * B to k * B + B - 1 of the endless shuffled order, so a batch may end one
    epoch and begin the next, and no row is left out.

    Args:
        rows: of the train split.
        batch_size: B, rows in the global batch.
        seed: of the order.
        start: index of the first batch, to resume.
        groups: of rows, each shuffled anew whenever it is used up; only these are drawn. None:
            all rows, each as often as the others.
        places: of the rows of each batch that are read here, from 0 to B - 1; None: all.

    Returns:
        An iterator of {tokens [n, L + 1], segments [n, L], bytes [n]} and what else a row has,
        int32, of n places.

    Raises:
        UserError: there are fewer rows than a batch has, or an argument is out of range.
    """
    part = _part(batch_size, places)
    order = _order(rows, batch_size, seed, groups)
    return _ahead(lambda k: _gather(rows, [order[i] for i in part(k)]), start, sys.maxsize)


def eval_batches(
    rows: RowSource,
    *,
    batch_size: int,
    limit: int | None = None,
    places: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields every row once, or a sample of `limit` rows that is the same for every run.

    The sample is drawn without replacement, and a smaller one is the beginning of a larger one.
    The last batch is filled up with rows of zeros: padding (segments 0) of no bytes.

    Args:
        rows: of any split.
        batch_size: B, rows in the global batch.
        limit: rows in the sample; None, or more than there are, for all.
        places: as for `train_batches`.

    Raises:
        UserError: an argument is out of range.
    """
    part = _part(batch_size, places)
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} rows is no evaluation; use 1 or more, or None for all")
    order = eval_order(rows, limit)

    def batch(k: int) -> Batch:
        indices = part(k)
        chosen = [order[i] for i in indices if i < len(order)]
        batch = _gather(rows, chosen or [0])  # a row for its shape, where none is left here
        missing = len(indices) - len(chosen)
        return {key: _padded(values[: len(chosen)], missing) for key, values in batch.items()}

    return _ahead(batch, 0, -(-len(order) // batch_size))


def eval_order(rows: RowSource, limit: int | None = None) -> Sequence[int]:
    """The numbers of the rows of `eval_batches`, in their order."""
    order = _shuffled(np.arange(len(rows)), seed=0)
    return order if limit is None else order[:limit]


def local_train_batches(
    mesh: "jax.sharding.Mesh", rows: RowSource, *, batch_size: int, **options: Any
) -> Iterator[Batch]:
    """The batches of `train_batches`, of each the rows that this process's devices hold."""
    from lm.devices import sharding

    places = sharding.local_places(mesh, batch_size)
    return train_batches(rows, batch_size=batch_size, places=places, **options)


def sharded_eval_batches(
    mesh: "jax.sharding.Mesh", rows: RowSource, *, batch_size: int, limit: int | None = None
) -> Iterator[dict[str, "jax.Array"]]:
    """The batches of `eval_batches` as arrays that the devices of all processes share."""
    from lm.devices import sharding

    places = sharding.local_places(mesh, batch_size)
    for batch in eval_batches(rows, batch_size=batch_size, limit=limit, places=places):
        yield sharding.global_batch(mesh, batch)


class RowSubset:
    """Some rows, by their indices."""

    def __init__(self, rows: RowSource, indices: Sequence[int]):
        """Takes all rows, and which of them are meant."""
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        """How many."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One of them."""
        return self._rows[self._indices[index]]


def _part(batch_size: int, places: Sequence[int] | None) -> Callable[[int], list[int]]:
    """The function from k to the places, in the whole order, of batch k's rows at `places`."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is no number of rows; use 1 or more")
    here = range(batch_size) if places is None else places
    return lambda k: [k * batch_size + place for place in here]


def _order(rows: RowSource, batch_size: int, seed: int, groups: Groups | None) -> Any:
    if len(rows) < batch_size:
        raise UserError(
            f"train has {counted(len(rows), 'row')}, fewer than batch_size={batch_size}; use a "
            f"batch_size of at most {len(rows)}, a shorter length, or more text"
        )
    if groups is None:
        return _shuffled(np.arange(len(rows)), seed).repeat()
    import grain

    numbers, shares = zip(*groups, strict=True)
    return grain.MapDataset.mix([_shuffled(each, seed).repeat() for each in numbers], shares)


def _shuffled(numbers: Any, seed: int) -> Any:
    import grain

    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is not between 0 and 4294967295; use for example 0")
    return grain.MapDataset.source(numbers).seed(seed).shuffle()


def _ahead(batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    import grain

    numbers = grain.MapDataset.range(start, stop)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    return iter(numbers.map(batch).to_iter_dataset(options))


@runtime_checkable
class _ReadsMany(Protocol):
    """What sources on disk offer (TFDS, Grain, torch): many rows in one call, twice as fast."""

    def __getitems__(self, indices: list[int], /) -> Sequence[Mapping[str, Any]]: ...


def _gather(rows: RowSource, indices: list[int]) -> Batch:
    """The rows of these indices, stacked: [len(indices), ...] for each key, int32 or float32."""
    if isinstance(rows, _ReadsMany):
        read = rows.__getitems__(indices)
    else:
        read = [rows[i] for i in indices]
    arrays = {key: np.stack([row[key] for row in read]) for key in read[0]}
    return {k: x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for k, x in arrays.items()}


def _padded(values: np.ndarray, missing: int) -> np.ndarray:
    return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))
