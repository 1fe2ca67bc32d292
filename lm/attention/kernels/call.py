"""What the kernels of attention have in common: what they read, in which blocks, and their call."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.attention.kernels.families import Family
from lm.attention.kernels.tiles import Tiles
from lm.devices.tpu_core import Ref, run_kernel

Place = Callable[..., tuple[Any, Any, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What the kernels are made of.

    Attributes:
      family: of weightings.
      tiles: how scores are cut.
      interpret: on any device, slowly.
    """

    family: Family
    tiles: Tiles
    interpret: bool


class Operands(NamedTuple):
    """What a kernel reads: arrays, in a kernel references to blocks of them.

    Attributes:
      query: [B, H, Q, K], divided by sqrt(K).
      key: [B, G, S, K].
      value: [B, G, S, K'], in the forward pass [B, G, K', S].
      rows: what is known of each row, by name and in an order of its own, [B, H, R, Q].
      grads: of the contexts, [B, H, Q, K'], in the backward pass.
      segments: of queries [B, 1, Q] and of keys [B, S, 1].
      support: 0 for tiles without weight, [B, H, query_blocks, key_blocks], in the backward pass of
        weightings that know it.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    rows: jax.Array
    grads: jax.Array | None
    segments: tuple[jax.Array, jax.Array] | None
    support: jax.Array | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """Of sums."""
        return jnp.promote_types(self.value.dtype, jnp.float32)

    @property
    def share(self) -> int:
        """How many heads have the same keys."""
        return self.query.shape[1] // self.key.shape[1]


class Places(NamedTuple):
    """The blocks of a step: functions of a place of the grid and the bounds, which give the row of
    the batch, the head (or group of heads) and the block of queries or keys.
    """

    queries: Place
    keys: Place
    values: Place


class Output(NamedTuple):
    """An array that a kernel writes: its shape and dtype, that of a block, its place, and where the
    block is kept.
    """

    shape: tuple[int, ...]
    dtype: Any
    block: tuple[int | None, ...]
    place: Callable[..., tuple[Any, ...]]
    space: pltpu.MemorySpace = pltpu.VMEM


def call(
    kernel: Callable[..., None],
    setup: Setup,
    operands: Operands,
    bounds: tuple[jax.Array, jax.Array],
    grid: tuple[int, int, int, int],
    places: Places,
    outputs: Sequence[Output],
    scratch: Sequence[tuple[int, ...]],
    in_order: int = 1,
) -> list[jax.Array]:
    """Runs `kernel(setup, first, last, operands, *outputs, *scratch)` at each place of the grid.

    Args:
      kernel: gets references to blocks, and to the bounds as a whole.
      setup: of the kernels.
      operands: whole.
      bounds: the first and last block that each block needs, [B, blocks] twice.
      grid: rows of the batch, heads or groups, blocks, and steps.
      places: of what is read.
      outputs: what is written.
      scratch: shapes of arrays in the core's memory, in the dtype of sums.
      in_order: how many of the grid's last axes must run in order.
    """
    return run_kernel(
        functools.partial(kernel, setup),
        operands,
        _specs(setup.tiles, operands, places),
        name=f"attention{kernel.__name__}",
        grid=grid,
        outputs=[
            (
                jax.ShapeDtypeStruct(out.shape, out.dtype),
                pl.BlockSpec((None, None, *out.block), out.place, memory_space=out.space),
            )
            for out in outputs
        ],
        scratch=[pltpu.VMEM(shape, operands.dtype) for shape in scratch],
        scalars=bounds,
        in_order=in_order,
        interpret=setup.interpret,
    )


def by_queries(share: int) -> Places:
    """Where the grid has blocks of queries, and its steps are the blocks of keys that each needs;
    `share` heads have the same keys.
    """

    def of_queries(b, h, i, *_):
        return b, h, i

    def of_keys(b, h, i, step, *at):
        return b, h // share, bounded(b, i, step, *at)

    return Places(of_queries, of_keys, of_keys)


def of_rows(b, h, i, *_):
    """The place of what is known of each row, where the grid has blocks of queries."""
    return b, h, 0, i


def _specs(tiles: Tiles, operands: Operands, places: Places) -> Operands:
    """The blocks of what is read, by the names of `operands`."""
    n, m, size = tiles.query_size, tiles.key_size, operands.query.shape[3]
    forward = operands.grads is None
    width = operands.value.shape[2 if forward else 3]

    def rows_of(block: tuple[int, int], place: Place) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *block), lambda *at: (*place(*at), 0))

    def columns_of(block: tuple[int, int], place: Place) -> pl.BlockSpec:
        def turned(*at):
            b, h, i = place(*at)
            return b, h, 0, i

        return pl.BlockSpec((None, None, *block), turned)

    def query_segments(*at):
        return at[0], 0, places.queries(*at)[2]

    def key_segments(*at):
        return at[0], places.keys(*at)[2], 0

    def all_tiles(*at):
        return *places.queries(*at)[:2], 0, 0

    of_segments = (
        pl.BlockSpec((None, 1, n), query_segments),
        pl.BlockSpec((None, m, 1), key_segments),
    )
    of_values = (
        columns_of((width, m), places.values) if forward else rows_of((m, width), places.values)
    )
    blocks: dict[str, Any] = {
        "query": rows_of((n, size), places.queries),
        "key": rows_of((m, size), places.keys),
        "value": of_values,
        "rows": columns_of((operands.rows.shape[2], n), places.queries),
        "grads": None if forward else rows_of((n, width), places.queries),
        "segments": None if operands.segments is None else of_segments,
    }
    if operands.support is not None:
        whole = None, None, *operands.support.shape[2:]
        blocks["support"] = pl.BlockSpec(whole, all_tiles, memory_space=pltpu.SMEM)
    return Operands(**blocks)


def bounded(row, block, step, first, last) -> jax.Array:
    """The other block that `block` meets at a step, or the last that it needs."""
    return jnp.clip(first[row, block] + step, 0, jnp.maximum(last[row, block], 0))


def segments_of(operands: Operands) -> tuple[jax.Array, ...]:
    """Those of a tile's queries and keys; nothing where there are none."""
    return () if operands.segments is None else tuple(ref[...] for ref in operands.segments)


def split_rows(names: Sequence[str], rows_ref: Ref) -> dict[str, jax.Array]:
    """What each row has by name, [1, queries], of a block [R, queries]."""
    return {name: rows_ref[place : place + 1, :] for place, name in enumerate(names)}
