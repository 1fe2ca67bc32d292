"""The statistics of rows of logits by TPU kernels, with exact gradients of what the logits are made
of; nothing of size N x V is stored.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.output.kernels.backward import RowGrads, gradients
from lm.output.kernels.forward import Operands, row_sums
from lm.output.kernels.tiles import Setup, Tiles, make_tiles
from lm.output.logit_stats import LogitStats, target_grads
from lm.output.logit_transform import LogitTransform


def fused_logit_stats(
    hidden: jax.Array,
    table: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    dtype: DTypeLike,
    mean: bool = False,
    entropy: bool = False,
    axis: str | None = None,
    transform: LogitTransform = LogitTransform(),  # noqa: B008 (frozen)
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> LogitStats:
    """The `LogitStats` of f(h W' + b), as `logit_stats` of the product gives them.

    What is saved for the backward pass are the arguments and four numbers per token; the logits
    are computed there once more: 8 N D V FLOPs forward and backward.

    Args:
      hidden: h, [N, D].
      table: W, [V, D].
      bias: b, [V], or None.
      targets: [N].
      dtype: of the products' operands; sums are float32.
      mean, entropy, axis, transform: as of `logit_stats`; the transform has no parameters.
      tiles: of N, V; None: by size.
      interpret: on any device, slowly.
    """
    if tiles is None:
        tokens, vocab = hidden.shape[0], table.shape[0]
        tiles = make_tiles(tokens, vocab, table.shape[1], jnp.dtype(dtype).itemsize)
    setup = Setup(tiles, transform, mean, entropy, interpret)
    return _stats(hidden, table, bias, targets, setup, jnp.dtype(dtype), axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _stats(hidden, table, bias, targets, setup, dtype, axis) -> LogitStats:
    return _forward(hidden, table, bias, targets, setup, dtype, axis)[0]


def _forward(hidden, table, bias, targets, setup, dtype, axis):
    transform, vocab = setup.transform, setup.tiles.vocab
    if axis is not None:
        targets = targets - jax.lax.axis_index(axis) * vocab
    sums = row_sums(setup, _operands(setup, hidden, table, bias, targets, dtype))
    sums = jax.tree.map(lambda x: x[0, : len(hidden)], sums)
    largest = sums.top if axis is None else jax.lax.pmax(sums.top, axis)
    top = transform.value(largest)
    less = transform.value(sums.top) - top
    kept = jnp.exp(less)
    below, others = kept * (sums.below + less * sums.others), kept * sums.others
    target, total = sums.target, sums.total
    if axis is not None:
        joined = (others, target, *(total,) * setup.mean, *(below,) * setup.entropy)
        others, target, *rest = jax.lax.psum(joined, axis)
        total = rest[0] if setup.mean else total
        below = rest[-1] if setup.entropy else below
    target = transform.value(target)
    own = jnp.exp(target - top)
    whole = others + own
    stats = LogitStats(
        cross_entropy=jax.nn.softplus(jnp.log(others) + (top - target)),
        logsumexp=top + jnp.log(whole),
        mean=total / (vocab * _parts(axis)),
        entropy=jnp.zeros_like(top),
    )
    if setup.entropy:
        below += own * (target - top)
        stats = stats._replace(entropy=jnp.log(whole) - below / whole)
    return stats, (hidden, table, bias, targets, top, others, own, stats)


def _backward(setup, dtype, axis, saved, grad: LogitStats):
    hidden, table, bias, targets, top, others, own, stats = saved
    parts = _parts(axis)
    if parts > 1:  # each device's part of the loss depends alike on these statistics
        grad = jax.tree.map(lambda g: g * parts, grad)
    scale, target_grad = target_grads(grad, others, own)
    mean = grad.mean / (setup.tiles.vocab * parts)
    rows = (top, scale, target_grad, mean, grad.entropy, stats.entropy, stats.logsumexp)
    more = setup.tiles.token_blocks * setup.tiles.token_tile - len(hidden)
    row_grads = RowGrads(*(jnp.pad(row, (0, more))[None] for row in rows))
    operands = _operands(setup, hidden, table, bias, targets, dtype)
    found = gradients(setup, operands, row_grads)
    return (
        found.hidden[: len(hidden)].astype(hidden.dtype),
        found.table[: len(table)].astype(table.dtype),
        None if found.bias is None or bias is None else found.bias[: len(bias)].astype(bias.dtype),
        None,
    )


_stats.defvjp(_forward, _backward)


def _operands(setup: Setup, hidden, table, bias, targets, dtype) -> Operands:
    tiles = setup.tiles
    tokens = tiles.token_blocks * tiles.token_tile - len(hidden)
    vocab = tiles.vocab_blocks * tiles.vocab_tile - len(table)
    here = (targets >= 0) & (targets < len(table))
    targets = jnp.pad(jnp.where(here, targets, -1), (0, tokens), constant_values=-1)
    if bias is not None:
        wide = jnp.promote_types(dtype, jnp.float32)
        bias = jnp.pad(bias.astype(wide), (0, vocab))[None]
    return Operands(
        targets.astype(jnp.int32)[None],
        jnp.pad(hidden.astype(dtype), ((0, tokens), (0, 0))),
        jnp.pad(table.astype(dtype), ((0, vocab), (0, 0))),
        bias,
    )


def _parts(axis: str | None) -> int:
    return 1 if axis is None else jax.lax.axis_size(axis)
