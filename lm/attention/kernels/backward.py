"""The backward pass of attention as two TPU kernels: one for queries and options of the weighting,
a block of queries after the other; one for keys and values, a block of keys after the other.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.attention.kernels.families import Family
from lm.attention.kernels.forward import LAST, split_rows
from lm.attention.kernels.tiles import Tiles

FIRST = ((0,), (0,)), ((), ())  # contracts the first axis of both


def query_gradients(
    family: Family,
    tiles: Tiles,
    interpret: bool,
    bounds: tuple[jax.Array, jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    grads: jax.Array,
    rows: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of queries [B, H, K, Q], and of what rows bring, [B, H, R, Q].

    Args:
      family: of weightings.
      tiles: how scores are cut.
      interpret: on any device, slowly.
      bounds: first and last block of keys that each block of queries needs, [B, blocks] twice.
      query: [B, H, Q, K].
      key: [B, G, S, K].
      value: [B, G, S, K'].
      grads: of the contexts, [B, H, Q, K'].
      rows: [B, H, R, Q], in the order of `family.row_names`, `family.saved`, and "delta".
      segments: of queries [B, 1, Q] and of keys [B, S, 1].
    """
    batch, heads, length, size = query.shape
    share, width = heads // key.shape[1], value.shape[3]
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    n, m, count = tiles.query_size, tiles.key_size, max(1, len(family.names))

    def of_queries(b, h, i, *_):
        return b, h, i, 0

    def of_keys(b, h, i, step, first, last):
        at = jnp.clip(first[b, i] + step, 0, jnp.maximum(last[b, i], 0))
        return b, h // share, at, 0

    in_specs = [
        pl.BlockSpec((None, None, n, size), of_queries),
        pl.BlockSpec((None, None, m, size), of_keys),
        pl.BlockSpec((None, None, m, width), of_keys),
        pl.BlockSpec((None, None, n, width), of_queries),
        pl.BlockSpec((None, None, rows.shape[2], n), lambda b, h, i, *_: (b, h, 0, i)),
    ]
    if segments is not None:
        in_specs += [
            pl.BlockSpec((None, 1, n), lambda b, h, i, *_: (b, 0, i)),
            pl.BlockSpec((None, m, 1), lambda b, h, i, *at: (b, of_keys(b, h, i, *at)[2], 0)),
        ]
    return pl.pallas_call(
        functools.partial(_query_kernel, family, tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads, tiles.query_blocks, tiles.steps(of_keys=False)),
            in_specs=in_specs,
            out_specs=[
                pl.BlockSpec((None, None, size, n), lambda b, h, i, *_: (b, h, 0, i)),
                pl.BlockSpec((None, None, count, n), lambda b, h, i, *_: (b, h, 0, i)),
            ],
            scratch_shapes=[pltpu.VMEM((size, n), dtype), pltpu.VMEM((count, n), dtype)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, size, length), query.dtype),
            jax.ShapeDtypeStruct((batch, heads, count, length), dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="attention_query_gradients",
    )(*bounds, query, key, value, grads, rows, *(segments or ()))


def _query_kernel(family, tiles, first_ref, last_ref, *refs):
    *inputs, query_grad_ref, option_grad_ref, query_sum_ref, option_sum_ref = refs
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    key_block = first_ref[row, block] + step

    @pl.when(step == 0)
    def _start():
        query_sum_ref[...] = jnp.zeros_like(query_sum_ref)
        option_sum_ref[...] = jnp.zeros_like(option_sum_ref)

    @pl.when(key_block <= last_ref[row, block])
    def _add():
        tile = _tile(family, tiles, block, key_block, inputs)
        key = inputs[1][...]
        query_sum_ref[...] += jax.lax.dot_general(
            key, tile.scores.astype(key.dtype), FIRST, preferred_element_type=query_sum_ref.dtype
        )
        for place, name in enumerate(family.names):
            if name in tile.options:
                option_sum_ref[place : place + 1, :] += tile.options[name]

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish():
        query_grad_ref[...] = query_sum_ref[...].astype(query_grad_ref.dtype)
        option_grad_ref[...] = option_sum_ref[...]


def key_gradients(
    family: Family,
    tiles: Tiles,
    interpret: bool,
    bounds: tuple[jax.Array, jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    grads: jax.Array,
    rows: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of keys [B, G, S, K] and values [B, G, S, K'].

    Args: those of `query_gradients`, but for `bounds`: the first and the last block of queries that
    each block of keys needs.
    """
    batch, heads, _, size = query.shape
    groups, width = key.shape[1], value.shape[3]
    share = heads // groups
    dtype = jnp.promote_types(key.dtype, jnp.float32)
    n, m, steps = tiles.query_size, tiles.key_size, tiles.steps(of_keys=True)

    def of_keys(b, g, j, *_):
        return b, g, j, 0

    def of_queries(b, g, j, step, first, last):
        at = jnp.clip(first[b, j] + step % steps, 0, jnp.maximum(last[b, j], 0))
        return b, g * share + step // steps, at, 0

    def of_rows(b, g, j, step, *at):
        b, h, i, _ = of_queries(b, g, j, step, *at)
        return b, h, 0, i

    in_specs = [
        pl.BlockSpec((None, None, n, size), of_queries),
        pl.BlockSpec((None, None, m, size), of_keys),
        pl.BlockSpec((None, None, m, width), of_keys),
        pl.BlockSpec((None, None, n, width), of_queries),
        pl.BlockSpec((None, None, rows.shape[2], n), of_rows),
    ]
    if segments is not None:
        in_specs += [
            pl.BlockSpec((None, 1, n), lambda *at: (at[0], 0, of_queries(*at)[2])),
            pl.BlockSpec((None, m, 1), lambda b, g, j, *_: (b, j, 0)),
        ]
    return pl.pallas_call(
        functools.partial(_key_kernel, family, tiles, steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, groups, tiles.key_blocks, share * steps),
            in_specs=in_specs,
            out_specs=[
                pl.BlockSpec((None, None, m, size), of_keys),
                pl.BlockSpec((None, None, m, width), of_keys),
            ],
            scratch_shapes=[pltpu.VMEM((m, size), dtype), pltpu.VMEM((m, width), dtype)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(key.shape, key.dtype),
            jax.ShapeDtypeStruct(value.shape, value.dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="attention_key_gradients",
    )(*bounds, query, key, value, grads, rows, *(segments or ()))


def _key_kernel(family, tiles, steps, first_ref, last_ref, *refs):
    *inputs, key_grad_ref, value_grad_ref, key_sum_ref, value_sum_ref = refs
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    query_block = first_ref[row, block] + step % steps

    @pl.when(step == 0)
    def _start():
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    @pl.when(query_block <= last_ref[row, block])
    def _add():
        tile = _tile(family, tiles, query_block, block, inputs)
        query, grads = inputs[0][...], inputs[3][...]
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


def _tile(family, tiles, query_block, key_block, inputs):
    """Weights and gradients of one tile, computed again from queries and keys."""
    query_ref, key_ref, value_ref, grads_ref, rows_ref, *segment_refs = inputs
    dtype = jnp.promote_types(query_ref.dtype, jnp.float32)
    scores = jax.lax.dot_general(key_ref[...], query_ref[...], LAST, preferred_element_type=dtype)
    of_weights = jax.lax.dot_general(
        value_ref[...], grads_ref[...], LAST, preferred_element_type=dtype
    )
    rows = split_rows((*family.row_names, *family.saved, "delta"), rows_ref)
    visible = tiles.visible(query_block, key_block, *(ref[...] for ref in segment_refs))
    return family.backward(scores, visible, rows, of_weights)
