"""The forward pass of attention as one TPU kernel, a tile of scores at a time.

The grid is (row of the batch, head, block of queries, step), where a step is one of the blocks of
keys that the block of queries needs. Tiles are [keys, queries]: sums over a row are sums over
sublanes, and what a row has is a vector of lanes.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.attention.kernels.families import Exponential, Family, Pointwise
from lm.attention.kernels.tiles import Tiles

Ref = Any  # a block of an array, in a core's memory
LAST = ((1,), (1,)), ((), ())  # contracts the last axis of both


class Forward(NamedTuple):
    """What the forward pass gives.

    Attributes:
      contexts: [B, H, K', Q].
      saved: what `Family.saved` names of each row, [B, H, 1 or more, Q].
      means: of values by the sensitivities of weights, [B, H, K', Q]; None: they are the contexts.
    """

    contexts: jax.Array
    saved: jax.Array
    means: jax.Array | None = None


def place(b, i, step, first, last) -> jax.Array:
    """The block of keys of a step, or the last one that the block i of queries needs."""
    return jnp.clip(first[b, i] + step, 0, jnp.maximum(last[b, i], 0))


def forward(
    family: Family,
    tiles: Tiles,
    interpret: bool,
    bounds: tuple[jax.Array, jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    rows: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None,
) -> Forward:
    """One pass over the keys.

    Args:
      family: of weightings.
      tiles: how scores are cut.
      interpret: on any device, slowly.
      bounds: first and last block of keys that each block of queries needs, [B, blocks] twice.
      query: [B, H, Q, K], divided by sqrt(K).
      key: [B, G, S, K].
      value: [B, G, K', S].
      rows: [B, H, R, Q], in the order of `family.row_names`.
      segments: of queries [B, 1, Q] and of keys [B, S, 1].
    """
    batch, heads, length, size = query.shape
    groups, width = key.shape[1], value.shape[2]
    share = heads // groups
    dtype = jnp.promote_types(value.dtype, jnp.float32)

    def of_queries(b, h, i, _, *__):
        return b, h, i, 0

    n, m = tiles.query_size, tiles.key_size
    in_specs = [
        pl.BlockSpec((None, None, n, size), of_queries),
        pl.BlockSpec(
            (None, None, m, size), lambda b, h, i, s, *at: (b, h // share, place(b, i, s, *at), 0)
        ),
        pl.BlockSpec(
            (None, None, width, m), lambda b, h, i, s, *at: (b, h // share, 0, place(b, i, s, *at))
        ),
        pl.BlockSpec((None, None, rows.shape[2], n), lambda b, h, i, *_: (b, h, 0, i)),
    ]
    operands = [query, key, value, rows]
    if segments is not None:
        in_specs += [
            pl.BlockSpec((None, 1, n), lambda b, h, i, *_: (b, 0, i)),
            pl.BlockSpec((None, m, 1), lambda b, h, i, s, *at: (b, place(b, i, s, *at), 0)),
        ]
        operands += segments
    out_specs = [
        pl.BlockSpec((None, None, width, n), lambda b, h, i, *_: (b, h, 0, i)),
        pl.BlockSpec((None, None, 1, n), lambda b, h, i, *_: (b, h, 0, i)),
    ]
    return Forward(
        *pl.pallas_call(
            functools.partial(_kernel, family, tiles),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(batch, heads, tiles.query_blocks, tiles.steps(of_keys=False)),
                in_specs=in_specs,
                out_specs=out_specs,
                scratch_shapes=[
                    pltpu.VMEM((width, n), dtype),
                    pltpu.VMEM((1, n), dtype),
                    pltpu.VMEM((1, n), dtype),
                ],
            ),
            out_shape=[
                jax.ShapeDtypeStruct((batch, heads, width, length), value.dtype),
                jax.ShapeDtypeStruct((batch, heads, 1, length), dtype),
            ],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
            ),
            interpret=interpret,
            name="attention_forward",
        )(*bounds, *operands)
    )


def split_rows(names: Sequence[str], rows_ref: Ref) -> dict[str, jax.Array]:
    """What each row has by name, [1, queries], of a block [R, queries]."""
    return {name: rows_ref[place : place + 1, :] for place, name in enumerate(names)}


def _kernel(family, tiles, first_ref, last_ref, query_ref, key_ref, value_ref, rows_ref, *refs):
    *segment_refs, context_ref, lse_ref, sums_ref, top_ref, total_ref = refs
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    key_block = first_ref[row, block] + step
    rows = split_rows(family.row_names, rows_ref)

    @pl.when(step == 0)
    def _start():
        sums_ref[...] = jnp.zeros_like(sums_ref)
        top_ref[...] = jnp.full_like(top_ref, -jnp.inf)
        total_ref[...] = jnp.zeros_like(total_ref)
        if family.weighting.sink:
            sink = {**family.options, **rows}.get("sink", 0.0)
            top_ref[...] = jnp.zeros_like(top_ref) + sink
            total_ref[...] = jnp.ones_like(total_ref)

    @pl.when(key_block <= last_ref[row, block])
    def _add():
        scores = jax.lax.dot_general(
            key_ref[...], query_ref[...], LAST, preferred_element_type=sums_ref.dtype
        )
        visible = tiles.visible(block, key_block, *(ref[...] for ref in segment_refs))
        if isinstance(family, Pointwise):
            weights = family.weights(scores, visible, rows)
        else:
            assert isinstance(family, Exponential)
            x = family.exponents(scores, visible, rows)
            top = jnp.maximum(top_ref[...], jnp.max(x, axis=0, keepdims=True))
            finite = jnp.where(top == -jnp.inf, 0.0, top)
            kept = jnp.exp(top_ref[...] - finite)
            exponentials = jnp.exp(x - finite)
            total_ref[...] = total_ref[...] * kept + jnp.sum(exponentials, axis=0, keepdims=True)
            sums_ref[...] *= kept
            top_ref[...] = top
            weights = family.signed(scores, exponentials)
        sums_ref[...] += jnp.dot(
            value_ref[...], weights.astype(value_ref.dtype), preferred_element_type=sums_ref.dtype
        )

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish():
        sums, total = sums_ref[...], total_ref[...]
        lse = jnp.zeros_like(total)
        if family.saved:
            total = jnp.where(total == 0.0, 1.0, total)
            sums, top = sums / total, top_ref[...]
            lse = jnp.where(top == -jnp.inf, 0.0, top) + jnp.log(total)
        context_ref[...] = sums.astype(context_ref.dtype)
        lse_ref[...] = lse
