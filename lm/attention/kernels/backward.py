"""The backward pass of attention as one TPU kernel, a block of keys after the other, where the
gradients of all queries of a head fit in a core's memory; else as two, of which one goes from block
to block of queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from lm.attention.kernels.call import (
    Operands,
    Output,
    Places,
    Setup,
    bounded,
    by_queries,
    call,
    of_rows,
    segments_of,
    split_rows,
)
from lm.attention.kernels.families import Tile
from lm.attention.kernels.tiles import bounds
from lm.devices.tpu_core import CONTRACT_FIRST, CONTRACT_LAST, core_memory


class Gradients(NamedTuple):
    """What the backward pass gives.

    Attributes:
      query: [B, H, K, Q].
      options: of what rows have, [B, H, 1 or more, Q].
      key, value: [B, G, S, K] and [B, G, S, K'].
    """

    query: jax.Array
    options: jax.Array
    key: jax.Array
    value: jax.Array


def gradients(setup: Setup, operands: Operands, needed: jax.Array) -> Gradients:
    """All gradients; operands have the rows `family.row_names`, `family.saved` and "delta".

    Args:
      setup: of the kernels.
      operands: with gradients of the contexts.
      needed: the tiles that are not empty, [B, query_blocks, key_blocks].
    """
    _, _, length, size = operands.query.shape
    of_keys = bounds(needed.swapaxes(1, 2))
    # Sums in float32, and those of the head before, while they are written.
    if 2 * 4 * operands.share * length * size <= core_memory() // 2:
        return _all_gradients(setup, operands, of_keys)
    return Gradients(
        *_query_gradients(setup, operands, bounds(needed)),
        *_key_gradients(setup, operands, of_keys),
    )


def _all_gradients(
    setup: Setup, operands: Operands, of_keys: tuple[jax.Array, jax.Array]
) -> Gradients:
    batch, heads, length, size = operands.query.shape
    groups, tiles = operands.key.shape[1], setup.tiles
    blocks, n = operands.share * tiles.query_blocks, tiles.query_size

    def of_group(rows: int) -> Output:
        block = blocks, rows, n
        return Output(
            (batch, groups, *block), operands.dtype, block, lambda b, g, *_: (b, g, 0, 0, 0)
        )

    def of_heads(sums: jax.Array) -> jax.Array:
        found = sums.reshape(batch, heads, tiles.query_blocks, -1, n)
        return found.swapaxes(2, 3).reshape(batch, heads, -1, length)

    key, value, query, options = _call_by_keys(
        _gradients_of_all,
        setup,
        operands,
        of_keys,
        [of_group(size), of_group(max(1, len(setup.family.names)))],
    )
    return Gradients(of_heads(query).astype(operands.query.dtype), of_heads(options), key, value)


def _gradients_of_all(
    setup,
    first_ref,
    last_ref,
    operands,
    key_ref,
    value_ref,
    query_ref,
    option_ref,
    key_sum_ref,
    value_sum_ref,
):
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    steps, blocks = setup.tiles.steps(of_keys=True), setup.tiles.query_blocks
    query_block = first_ref[row, block] + step % steps
    place = step // steps * blocks + query_block

    @pl.when((block == 0) & (step == 0))
    def _start():
        @pl.loop(0, query_ref.shape[0])
        def _zero(place):
            query_ref[place] = jnp.zeros_like(query_ref[place])
            option_ref[place] = jnp.zeros_like(option_ref[place])

    def add(tile: Tile):
        query_ref[place] += _query_gradient(tile, operands.key[...], query_ref.dtype)
        _add_options(setup, option_ref.at[place], tile)

    sums = key_ref, value_ref, key_sum_ref, value_sum_ref
    _sum_of_keys(setup, query_block, last_ref[row, block], operands, sums, add)


def _query_gradients(
    setup: Setup, operands: Operands, of_queries: tuple[jax.Array, jax.Array]
) -> list[jax.Array]:
    batch, heads, length, size = operands.query.shape
    tiles, n = setup.tiles, setup.tiles.query_size
    count = max(1, len(setup.family.names))
    return call(
        _gradients_of_queries,
        setup,
        operands,
        of_queries,
        (batch, heads, tiles.query_blocks, tiles.steps(of_keys=False)),
        by_queries(operands.share),
        [
            Output((batch, heads, size, length), operands.query.dtype, (size, n), of_rows),
            Output((batch, heads, count, length), operands.dtype, (count, n), of_rows),
        ],
        [(size, n), (count, n)],
    )


def _gradients_of_queries(
    setup,
    first_ref,
    last_ref,
    operands,
    query_grad_ref,
    option_grad_ref,
    query_sum_ref,
    option_sum_ref,
):
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    key_block = first_ref[row, block] + step

    @pl.when(step == 0)
    def _start():
        query_sum_ref[...] = jnp.zeros_like(query_sum_ref)
        option_sum_ref[...] = jnp.zeros_like(option_sum_ref)

    @pl.when((key_block <= last_ref[row, block]) & _has_weight(block, key_block, operands))
    def _add():
        tile = _tile(setup, block, key_block, operands)
        query_sum_ref[...] += _query_gradient(tile, operands.key[...], query_sum_ref.dtype)
        _add_options(setup, option_sum_ref, tile)

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish():
        query_grad_ref[...] = query_sum_ref[...].astype(query_grad_ref.dtype)
        option_grad_ref[...] = option_sum_ref[...]


def _query_gradient(tile: Tile, key: jax.Array, dtype) -> jax.Array:
    """What a tile adds to the gradient of its queries, [K, queries]."""
    return jax.lax.dot_general(
        key, tile.scores.astype(key.dtype), CONTRACT_FIRST, preferred_element_type=dtype
    )


def _add_options(setup, option_ref, tile: Tile) -> None:
    for place, name in enumerate(setup.family.names):
        if name in tile.options:
            option_ref[place : place + 1, :] += tile.options[name]


def _key_gradients(
    setup: Setup, operands: Operands, of_keys: tuple[jax.Array, jax.Array]
) -> list[jax.Array]:
    return _call_by_keys(_gradients_of_keys, setup, operands, of_keys)


def _gradients_of_keys(setup, first_ref, last_ref, operands, *sums):
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    query_block = first_ref[row, block] + step % setup.tiles.steps(of_keys=True)
    _sum_of_keys(setup, query_block, last_ref[row, block], operands, sums)


def _call_by_keys(kernel, setup, operands, of_keys, more: Sequence[Output] = ()) -> list[jax.Array]:
    """Gradients of keys and values, and `more`."""
    tiles, share = setup.tiles, operands.share
    batch, groups, _, size = operands.key.shape
    m, width, steps = tiles.key_size, operands.value.shape[3], tiles.steps(of_keys=True)

    def of_queries(b, g, j, step, *at):
        return b, g * share + step // steps, bounded(b, j, step % steps, *at)

    def of_group(b, g, j, *_):
        return b, g, j

    def of_grads(b, g, j, *_):
        return b, g, j, 0

    return call(
        kernel,
        setup,
        operands,
        of_keys,
        (batch, groups, tiles.key_blocks, share * steps),
        Places(of_queries, of_group, of_group),
        [
            Output(operands.key.shape, operands.key.dtype, (m, size), of_grads),
            Output(operands.value.shape, operands.value.dtype, (m, width), of_grads),
            *more,
        ],
        [(m, size), (m, width)],
        in_order=2 if more else 1,
    )


def _sum_of_keys(setup, query_block, last, operands, sums, also=lambda tile: None) -> None:
    """A step of the gradients of keys and values; `also` gets its tile."""
    key_grad_ref, value_grad_ref, key_sum_ref, value_sum_ref = sums
    block, step = pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def _start():
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    @pl.when((query_block <= last) & _has_weight(query_block, block, operands))
    def _add():
        tile = _tile(setup, query_block, block, operands)
        query, grads = operands.query[...], operands.grads[...]
        key_sum_ref[...] += jnp.dot(
            tile.scores.astype(query.dtype), query, preferred_element_type=key_sum_ref.dtype
        )
        value_sum_ref[...] += jnp.dot(
            tile.weights.astype(grads.dtype), grads, preferred_element_type=value_sum_ref.dtype
        )
        also(tile)

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish():
        key_grad_ref[...] = key_sum_ref[...].astype(key_grad_ref.dtype)
        value_grad_ref[...] = value_sum_ref[...].astype(value_grad_ref.dtype)


def _has_weight(query_block, key_block, operands: Operands) -> jax.Array | bool:
    """Whether a tile has weight, as far as is known without its scores."""
    if operands.support is None:
        return True
    # Past the last that is needed, a block may not exist.
    queries, keys = operands.support.shape
    return (
        operands.support[jnp.minimum(query_block, queries - 1), jnp.minimum(key_block, keys - 1)]
        > 0
    )


def _tile(setup, query_block, key_block, operands) -> Tile:
    """Weights and gradients of one tile, computed again from queries and keys."""
    scores, of_weights = (
        jax.lax.dot_general(
            of_keys[...], of_queries[...], CONTRACT_LAST, preferred_element_type=operands.dtype
        )
        for of_keys, of_queries in (
            (operands.key, operands.query),
            (operands.value, operands.grads),
        )
    )
    family = setup.family
    rows = split_rows((*family.row_names, *family.saved, "delta"), operands.rows)
    visible = setup.tiles.visible(query_block, key_block, *segments_of(operands))
    return family.backward(scores, visible, rows, of_weights, key_block * setup.tiles.key_size)
