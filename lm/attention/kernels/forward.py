"""The forward pass of attention as one TPU kernel, a tile of scores at a time.

The grid is (row of the batch, head, block of queries, step), where a step is one of the blocks of
keys that the block of queries needs. Tiles are [keys, queries]: sums over a row are sums over
sublanes, and what a row has is a vector of lanes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from lm.attention.kernels.call import (
    Operands,
    Output,
    Setup,
    by_queries,
    call,
    of_rows,
    segments_of,
    split_rows,
)
from lm.attention.kernels.families import Exponential, Pointwise, Terms
from lm.devices.tpu_core import CONTRACT_LAST


class Forward(NamedTuple):
    """What the forward pass gives.

    Attributes:
      contexts: [B, H, K', Q].
      saved: what `Family.saved` names of each row, [B, H, 1 or more, Q].
      means: of values by the sensitivities of weights, [B, H, K', Q]; None: they are the contexts.
      support: 0 for tiles without weight, [B, H, query_blocks, key_blocks]; None: all have some.
    """

    contexts: jax.Array
    saved: jax.Array
    means: jax.Array | None = None
    support: jax.Array | None = None


def forward(setup: Setup, operands: Operands, bounds: tuple[jax.Array, jax.Array]) -> Forward:
    """One pass over the keys; `bounds` are blocks of keys that blocks of queries need."""
    batch, heads, length, _ = operands.query.shape
    tiles, width = setup.tiles, operands.value.shape[2]
    n, dtype = tiles.query_size, operands.dtype
    return Forward(
        *call(
            _forward,
            setup,
            operands,
            bounds,
            (batch, heads, tiles.query_blocks, tiles.steps(of_keys=False)),
            by_queries(operands.share),
            [
                Output((batch, heads, width, length), operands.value.dtype, (width, n), of_rows),
                Output((batch, heads, 1, length), dtype, (1, n), of_rows),
            ],
            [(width, n), (1, n), (1, n)],
        )
    )


def _forward(
    setup, first_ref, last_ref, operands, context_ref, saved_ref, sums_ref, top_ref, total_ref
):
    family, tiles = setup.family, setup.tiles
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    key_block = first_ref[row, block] + step
    rows = split_rows(family.row_names, operands.rows)

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
            operands.key[...],
            operands.query[...],
            CONTRACT_LAST,
            preferred_element_type=sums_ref.dtype,
        )
        visible = tiles.visible(block, key_block, *segments_of(operands))
        if isinstance(family, Pointwise):
            weights = family.weights(scores, visible, rows)
        elif isinstance(family, Terms):
            weights = family.terms(scores, visible, rows)
            total_ref[...] += jnp.sum(weights, axis=0, keepdims=True)
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
            weights = family.times_factor(scores, exponentials)
        value = operands.value[...]
        sums_ref[...] += jnp.dot(
            value, weights.astype(value.dtype), preferred_element_type=sums_ref.dtype
        )

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish():
        sums, total = sums_ref[...], total_ref[...]
        found = jnp.zeros_like(total)
        if family.saved:
            share = 1.0 / jnp.where(total == 0.0, 1.0, total)
            sums, top = sums * share, top_ref[...]
            lse = jnp.where(top == -jnp.inf, 0.0, top) - jnp.log(share)
            found = lse if isinstance(family, Exponential) else share
        context_ref[...] = sums.astype(context_ref.dtype)
        saved_ref[...] = found
