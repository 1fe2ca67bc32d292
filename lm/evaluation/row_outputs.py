"""Computes something of every row of a sequence, in batches that the devices share."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm.data.batches import RowSource, sharded_eval_batches

Outputs = Mapping[str, np.ndarray]  # of one row


def row_outputs(
    mesh: Mesh,
    rows: RowSource,
    batch_size: int,
    compute: Callable[[dict[str, jax.Array]], Mapping[str, jax.Array]],
) -> Iterator[tuple[int, Outputs]]:
    """Yields the index of each row, in no particular order, and what `compute` gives for it.

    Args:
      mesh: the devices.
      rows: N of them.
      batch_size: B, a multiple of data * fsdp devices.
      compute: of a batch of rows to arrays [B, ...]. Rows have a number "row", which it passes on:
        the index + 1, or 0 at the padding of the last batch.
    """
    for batch in sharded_eval_batches(mesh, _Numbered(rows), batch_size=batch_size):
        with jax.set_mesh(mesh):
            found = jax.tree.map(np.asarray, compute(batch))
        for place in np.flatnonzero(found["row"]):
            yield int(found["row"][place]) - 1, {k: v[place] for k, v in found.items()}


class _Numbered:
    """Rows with their numbers."""

    def __init__(self, rows: RowSource):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {**self._rows[index], "row": np.array(index + 1, np.int32)}
