"""Computes a loss for the tokens that count alone, at the cost of those: in blocks of them, as many
as there are (shapes are static, the number of blocks is not).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from lm.output.chunked import TokenFunction, TokenMap
from lm.output.loss_and_grad import LossAndGrad, TokenLoss, zero_sums

T = TypeVar("T")


def gathered(loss: TokenLoss, size: int) -> LossAndGrad:
    """Computes a `loss_sum` over the tokens whose weight is not 0, exact for any number of them.

    They are brought to the front, and blocks of `size` tokens are computed until none is left. The
    loss must be finite for every token, whatever its weight. Where devices split the tokens, some
    need more blocks than others; those that split the vocabulary of the same tokens need as many.
    """

    def compute(params, shared, index, hidden, targets, weights):
        def block_sum(params, hidden, index, targets, weights):
            return jnp.sum(loss(params, shared, index, hidden, targets) * weights)

        def add(sums, here, real):
            value, params_grad, hidden_grad = sums
            tokens = (hidden[here], index[here], targets[here], jnp.where(real, weights[here], 0.0))
            new, (p, h) = jax.value_and_grad(block_sum, argnums=(0, 1))(wide, *tokens)
            params_grad = jax.tree.map(jnp.add, params_grad, p)
            return value + new.astype(value.dtype), params_grad, hidden_grad.at[here].add(h)

        start, wide, zeros = zero_sums(params, hidden)
        sums = (start, zeros, jnp.zeros_like(hidden))
        value, params_grad, hidden_grad = _block_by_block(weights != 0, size, add, sums)
        return value, (params_grad, hidden_grad)

    return compute


def gathered_map(function: TokenFunction, size: int) -> TokenMap:
    """Maps `function` over the tokens that count; the results of others mean nothing."""

    def each(params, hidden, targets, where):
        def add(results, here, real):
            del real
            new = function(params, hidden[here], targets[here])
            return jax.tree.map(lambda x, y: x.at[here].set(y), results, new)

        shapes = jax.eval_shape(function, params, hidden[:size], targets[:size])
        zeros = jax.tree.map(lambda x: jnp.zeros((len(hidden), *x.shape[1:]), x.dtype), shapes)
        return _block_by_block(where, size, add, zeros)

    return each


def _block_by_block(
    counts: jax.Array, size: int, add: Callable[[T, jax.Array, jax.Array], T], start: T
) -> T:
    """Repeats `add(sums, here, real)` until all tokens that count were `here`, n at a time."""
    count = jnp.sum(counts)
    order = jnp.pad(jnp.argsort(~counts, stable=True), (0, -len(counts) % size))

    def unfinished(carry):
        return carry[0] * size < count

    def step(carry):
        block, sums = carry
        here = jax.lax.dynamic_slice(order, (block * size,), (size,))
        return block + 1, add(sums, here, block * size + jnp.arange(size) < count)

    return jax.lax.while_loop(unfinished, step, (0, start))[1]
