"""The statistics of rows of logits as one TPU kernel, a tile of logits at a time.

The grid is (block of tokens, block of the vocabulary), of which the second alone runs in order.
Tiles are [vocabulary, tokens]: sums over a row of logits are sums over sublanes, and what a token
has is a vector of lanes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from lm.devices.tpu_core import CONTRACT_LAST, LANES, run_kernel
from lm.output.kernels.tiles import Setup

_LEAST = -1e30  # below all logits, and finite
# Tokens of a tile whose statistics are computed at a time: a v6e's compiler keeps more of them in
# registers, and 512 x 1,024 logits take 0.86 of the bundles that they take at once.
_PART = 256


class Operands(NamedTuple):
    """What a kernel reads, filled up to whole tiles; in a kernel references to blocks of it.

    Attributes:
      targets: [1, N], negative where there is none.
      hidden: [N, D].
      table: [V, D].
      bias: [1, V], or None.
    """

    targets: jax.Array
    hidden: jax.Array
    table: jax.Array
    bias: jax.Array | None

    @property
    def dtype(self) -> jnp.dtype:
        """Of sums."""
        return jnp.promote_types(self.hidden.dtype, jnp.float32)


class RowSums(NamedTuple):
    """Of each row of logits z, with f(z) the transformed ones, [1, N] each.

    Attributes:
      top: max_v z_v.
      others: sum_v e^(f(z_v) - f(top)) without the target's.
      target: the target's z; 0 where it has none here.
      total: sum_v f(z_v); 0 unless the mean is asked for.
      below: sum_v e^(f(z_v) - f(top)) (f(z_v) - f(top)) without the target's; 0 unless the entropy
        is asked for.
    """

    top: jax.Array
    others: jax.Array
    target: jax.Array
    total: jax.Array
    below: jax.Array


def row_sums(setup: Setup, operands: Operands) -> RowSums:
    """One pass over the vocabulary."""
    tiles, dtype = setup.tiles, operands.dtype
    n, count = tiles.token_tile, len(RowSums._fields)
    rows = operands.hidden.shape[0]
    (sums,) = run_kernel(
        functools.partial(_forward, setup),
        operands,
        specs(setup, operands, lambda i, j: i, lambda i, j: j),
        name="head_forward",
        grid=(tiles.token_blocks, tiles.vocab_blocks),
        outputs=[
            (
                jax.ShapeDtypeStruct((count, rows), dtype),
                pl.BlockSpec((count, n), lambda i, j: (0, i)),
            )
        ],
        interpret=setup.interpret,
    )
    return RowSums(*jnp.split(sums, count))


def _forward(setup, operands, sums_ref):
    block = pl.program_id(1)

    @pl.when(block == 0)
    def _start():
        sums_ref[...] = jnp.zeros_like(sums_ref)
        place = RowSums._fields.index("top")
        sums_ref[place : place + 1, :] = jnp.full((1, sums_ref.shape[1]), _LEAST, sums_ref.dtype)

    for start in range(0, setup.tiles.token_tile, _PART):
        tokens = slice(start, min(start + _PART, setup.tiles.token_tile))
        z = tile_logits(operands._replace(hidden=operands.hidden.at[tokens, :]))
        before = RowSums(*(sums_ref[at : at + 1, tokens] for at in range(len(RowSums._fields))))
        after = _added(setup, block, operands.targets[:, tokens], z, before)
        for at, row in enumerate(after):
            sums_ref[at : at + 1, tokens] = row


def _added(
    setup: Setup, block: jax.Array, targets: jax.Array, z: jax.Array, sums: RowSums
) -> RowSums:
    """The sums with those of one tile of logits z, [vocab_tile, tokens]."""
    transform = setup.transform
    is_target = setup.tiles.is_target(block, targets)
    padding = setup.tiles.is_padding(block, z.shape[1])
    if padding is not None:
        z = jnp.where(padding, _LEAST, z)
    top = jnp.maximum(sums.top, jnp.max(z, axis=0, keepdims=True))
    shift, old_shift = transform.value(top), transform.value(sums.top)
    kept = jnp.exp(old_shift - shift)
    skipped = is_target if padding is None else is_target | padding
    exponentials = jnp.where(skipped, 0.0, transform.exponential(z, shift))
    total, below = sums.total, sums.below
    if setup.mean:
        values = transform.value(z)
        values = values if padding is None else jnp.where(padding, 0.0, values)
        total += jnp.sum(values, axis=0, keepdims=True)
    if setup.entropy:
        more = jnp.sum(exponentials * (transform.value(z) - shift), axis=0, keepdims=True)
        below = kept * (below + (old_shift - shift) * sums.others) + more
    return RowSums(
        top,
        kept * sums.others + jnp.sum(exponentials, axis=0, keepdims=True),
        sums.target + jnp.sum(jnp.where(is_target, z, 0.0), axis=0, keepdims=True),
        total,
        below,
    )


def tile_logits(operands: Operands) -> jax.Array:
    """A tile of logits before the transform, [vocab_tile, tokens]."""
    table, hidden = operands.table[...], operands.hidden[...]
    z = jax.lax.dot_general(table, hidden, CONTRACT_LAST, preferred_element_type=operands.dtype)
    if operands.bias is not None:
        rows = jnp.broadcast_to(operands.bias[...], (LANES, operands.bias.shape[1]))
        z += rows.T[:, :1]
    return z


def specs(
    setup: Setup,
    operands: Operands,
    token_block: Callable[..., Any],
    vocab_block: Callable[..., Any],
) -> Operands:
    """Blocks of the operands; `token_block` and `vocab_block` are those at a place of the grid."""
    n, v, features = setup.tiles.token_tile, setup.tiles.vocab_tile, operands.hidden.shape[1]
    bias = pl.BlockSpec((1, v), lambda *at: (0, vocab_block(*at)))
    blocks: dict[str, Any] = {
        "targets": pl.BlockSpec((1, n), lambda *at: (0, token_block(*at))),
        "hidden": pl.BlockSpec((n, features), lambda *at: (token_block(*at), 0)),
        "table": pl.BlockSpec((v, features), lambda *at: (vocab_block(*at), 0)),
        "bias": None if operands.bias is None else bias,
    }
    return Operands(**blocks)
