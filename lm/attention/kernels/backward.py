"""The backward pass of attention as two TPU kernels: one for queries and options of the weighting,
a block of queries after the other; one for keys and values, a block of keys after the other.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from lm.attention.kernels.call import (
    FIRST,
    LAST,
    Operands,
    Output,
    Places,
    Setup,
    bounded,
    by_queries,
    call,
    of_rows,
    split_rows,
)
from lm.attention.kernels.families import Tile


def query_gradients(
    setup: Setup, operands: Operands, bounds: tuple[jax.Array, jax.Array]
) -> list[jax.Array]:
    """Gradients of queries [B, H, K, Q], and of the options that rows have, [B, H, 1 or more, Q].

    Args:
      setup: of the kernels.
      operands: rows in the order of `family.row_names`, `family.saved` and "delta".
      bounds: of blocks of keys that blocks of queries need.
    """
    batch, heads, length, size = operands.query.shape
    tiles, n = setup.tiles, setup.tiles.query_size
    count = max(1, len(setup.family.names))
    return call(
        _query_gradients,
        setup,
        operands,
        bounds,
        (batch, heads, tiles.query_blocks, tiles.steps(of_keys=False)),
        by_queries(operands.share),
        [
            Output((batch, heads, size, length), operands.query.dtype, (size, n), of_rows),
            Output((batch, heads, count, length), operands.dtype, (count, n), of_rows),
        ],
        [(size, n), (count, n)],
    )


def _query_gradients(setup, first_ref, last_ref, *refs):
    *inputs, query_grad_ref, option_grad_ref, query_sum_ref, option_sum_ref = refs
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    key_block = first_ref[row, block] + step

    @pl.when(step == 0)
    def _start():
        query_sum_ref[...] = jnp.zeros_like(query_sum_ref)
        option_sum_ref[...] = jnp.zeros_like(option_sum_ref)

    @pl.when(key_block <= last_ref[row, block])
    def _add():
        tile, key = _tile(setup, block, key_block, *inputs), inputs[1][...]
        query_sum_ref[...] += jax.lax.dot_general(
            key, tile.scores.astype(key.dtype), FIRST, preferred_element_type=query_sum_ref.dtype
        )
        for place, name in enumerate(setup.family.names):
            if name in tile.options:
                option_sum_ref[place : place + 1, :] += tile.options[name]

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish():
        query_grad_ref[...] = query_sum_ref[...].astype(query_grad_ref.dtype)
        option_grad_ref[...] = option_sum_ref[...]


def key_gradients(
    setup: Setup, operands: Operands, bounds: tuple[jax.Array, jax.Array]
) -> list[jax.Array]:
    """Gradients of keys [B, G, S, K] and values [B, G, S, K'].

    Args: those of `query_gradients`, but for `bounds`: of blocks of queries that blocks of keys
    need.
    """
    tiles, share = setup.tiles, operands.share
    batch, groups, _, size = operands.key.shape
    m, width, steps = tiles.key_size, operands.value.shape[3], tiles.steps(of_keys=True)

    def of_queries(b, g, j, step, *at):
        return b, g * share + step // steps, bounded(b, j, step % steps, *at)

    def of_keys(b, g, j, *_):
        return b, g, j

    def of_grads(b, g, j, *_):
        return b, g, j, 0

    return call(
        _key_gradients,
        setup,
        operands,
        bounds,
        (batch, groups, tiles.key_blocks, share * steps),
        Places(of_queries, of_keys, of_keys),
        [
            Output(operands.key.shape, operands.key.dtype, (m, size), of_grads),
            Output(operands.value.shape, operands.value.dtype, (m, width), of_grads),
        ],
        [(m, size), (m, width)],
    )


def _key_gradients(setup, first_ref, last_ref, *refs):
    *inputs, key_grad_ref, value_grad_ref, key_sum_ref, value_sum_ref = refs
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    query_block = first_ref[row, block] + step % setup.tiles.steps(of_keys=True)

    @pl.when(step == 0)
    def _start():
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    @pl.when(query_block <= last_ref[row, block])
    def _add():
        tile = _tile(setup, query_block, block, *inputs)
        query, grads = inputs[0][...], inputs[4][...]
        key_sum_ref[...] += jnp.dot(
            tile.scores.astype(query.dtype), query, preferred_element_type=key_sum_ref.dtype
        )
        value_sum_ref[...] += jnp.dot(
            tile.weights.astype(grads.dtype), grads, preferred_element_type=value_sum_ref.dtype
        )

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish():
        key_grad_ref[...] = key_sum_ref[...].astype(key_grad_ref.dtype)
        value_grad_ref[...] = value_sum_ref[...].astype(value_grad_ref.dtype)


def _tile(
    setup, query_block, key_block, query_ref, key_ref, value_ref, rows_ref, grads_ref, *segment_refs
) -> Tile:
    """Weights and gradients of one tile, computed again from queries and keys."""
    dtype = jnp.promote_types(query_ref.dtype, jnp.float32)
    scores, of_weights = (
        jax.lax.dot_general(of_keys[...], of_queries[...], LAST, preferred_element_type=dtype)
        for of_keys, of_queries in ((key_ref, query_ref), (value_ref, grads_ref))
    )
    family = setup.family
    rows = split_rows((*family.row_names, *family.saved, "delta"), rows_ref)
    visible = setup.tiles.visible(query_block, key_block, *(ref[...] for ref in segment_refs))
    return family.backward(scores, visible, rows, of_weights)
