"""How does a loss avoid storing tokens x vocabulary? By chunks of tokens, each with its gradient in
the forward pass, so that nothing of size V per token outlives its chunk or is computed twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.output.loss_and_grad import Compute, Loss, zero_sums

# `function(params, hidden [n, D], targets [n])`: arrays [n, ...], what is found for each token.
Found = Callable[..., Any]
# `each(params, hidden [N, D], targets [N], where [N])`: the same for all tokens that count.
PerToken = Callable[..., Any]


def chunked(loss: Loss, chunks: int) -> Compute:
    """Computes a `total` over chunks of tokens, one after the other."""

    def compute(params, shared, rows, hidden, targets, weights):
        def total(params, hidden, rows, targets, weights):
            return jnp.sum(loss(params, shared, rows, hidden, targets) * weights)

        def add(sums, chunk):
            found, (of_params, of_hidden) = jax.value_and_grad(total, argnums=(0, 1))(wide, *chunk)
            new = (found, jax.tree.map(_turn, of_params, tall))
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, new), of_hidden

        start, wide, zeros = zero_sums(params, hidden)
        # The gradient of a tall table is found as features x words (see `product`), is summed as
        # that, and turned once at the end.
        tall = jax.tree.map(lambda p: p.ndim == 2 and p.shape[0] > p.shape[1], wide)
        zeros = jax.tree.map(_turn, zeros, tall)
        tokens = tuple(split(x, chunks) for x in (hidden, rows, targets, weights))
        (value, of_params), of_hidden = jax.lax.scan(add, (start, zeros), tokens)
        of_params = jax.tree.map(_turn, of_params, tall)
        return value, (of_params, join(of_hidden, len(hidden)))

    return compute


def chunked_map(function: Found, chunks: int) -> PerToken:
    """Finds what `function` does for every token, chunk after chunk."""

    def each(params, hidden, targets, where):
        del where
        if chunks == 1:
            return function(params, hidden, targets)
        tokens = (split(hidden, chunks), split(targets, chunks))
        found = jax.lax.map(lambda chunk: function(params, *chunk), tokens)
        return jax.tree.map(lambda x: join(x, len(hidden)), found)

    return each


def split(x: jax.Array, chunks: int) -> jax.Array:
    """[N, ...] to [chunks, N / chunks, ...]; chunk j holds rows j, j + chunks, ...

    So every device has its part of every chunk. Where N does not divide, zeros fill the last rows.
    """
    padding = ((0, -len(x) % chunks), *((0, 0),) * (x.ndim - 1))
    return jnp.pad(x, padding).reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1)


def join(x: Any, tokens: int) -> jax.Array:
    """The inverse of `split`, of N tokens."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:tokens]


def _turn(x: jax.Array, tall: bool) -> jax.Array:
    return x.T if tall else x
