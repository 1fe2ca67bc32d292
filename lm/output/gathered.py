"""How is a loss summed over some of the tokens only, or found for some, at the cost of those? In
blocks of them, as many as there are: shapes are static, the number of blocks is not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.output.chunked import Found, PerToken
from lm.output.loss_and_grad import Compute, Loss, zero_sums


def gathered(loss: Loss, block: int) -> Compute:
    """Computes a `total` over the tokens whose weight is not 0, exact for any number of them.

    They are brought to the front, and blocks of `block` tokens are computed until none is left. The
    loss must be finite for every token, whatever its weight. Where devices split the tokens, some
    need more blocks than others; those that split the words of the same tokens need as many.
    """

    def compute(params, shared, rows, hidden, targets, weights):
        def total(params, hidden, rows, targets, weights):
            return jnp.sum(loss(params, shared, rows, hidden, targets) * weights)

        def add(sums, here, real):
            value, of_params, of_hidden = sums
            tokens = (hidden[here], rows[here], targets[here], jnp.where(real, weights[here], 0.0))
            found, (p, h) = jax.value_and_grad(total, argnums=(0, 1))(wide, *tokens)
            of_params = jax.tree.map(jnp.add, of_params, p)
            return value + found.astype(value.dtype), of_params, of_hidden.at[here].add(h)

        start, wide, zeros = zero_sums(params, hidden)
        sums = (start, zeros, jnp.zeros_like(hidden))
        value, of_params, of_hidden = _block_by_block(weights != 0, block, add, sums)
        return value, (of_params, of_hidden)

    return compute


def gathered_map(function: Found, block: int) -> PerToken:
    """Finds what `function` does for the tokens that count; the others get anything."""

    def each(params, hidden, targets, where):
        def add(found, here, real):
            del real
            new = function(params, hidden[here], targets[here])
            return jax.tree.map(lambda x, y: x.at[here].set(y), found, new)

        shapes = jax.eval_shape(function, params, hidden[:block], targets[:block])
        zeros = jax.tree.map(lambda x: jnp.zeros((len(hidden), *x.shape[1:]), x.dtype), shapes)
        return _block_by_block(where, block, add, zeros)

    return each


def _block_by_block(
    counts: jax.Array, block: int, add: Callable[[Any, jax.Array, jax.Array], Any], start: Any
) -> Any:
    """Repeats `add(sums, here, real)` from `start` on, until all tokens that count were `here`.

    `here`, [n], are n places of tokens; the last, partial block repeats some that are not `real`.
    """
    count = jnp.sum(counts)
    order = jnp.pad(jnp.argsort(~counts, stable=True), (0, -len(counts) % block))

    def unfinished(carry):
        return carry[0] * block < count

    def step(carry):
        index, sums = carry
        here = jax.lax.dynamic_slice(order, (index * block,), (block,))
        return index + 1, add(sums, here, index * block + jnp.arange(block) < count)

    return jax.lax.while_loop(unfinished, step, (0, start))[1]
