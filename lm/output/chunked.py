"""Computes a loss in chunks of tokens, each with its gradient in the forward pass, so that nothing
of size V per token outlives its chunk or is computed twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.output.loss_and_grad import LossAndGrad, TokenLoss, zero_sums

# `function(params, hidden [n, D], targets [n])`: a pytree of arrays [n, ...], for each token.
TokenFunction = Callable[..., Any]
# `each(params, hidden [N, D], targets [N], where [N])`: the same for all tokens that count.
TokenMap = Callable[..., Any]


def chunked(loss: TokenLoss, chunks: int) -> LossAndGrad:
    """Computes a `loss_sum` over chunks of tokens, one after the other."""

    def compute(params, shared, index, hidden, targets, weights):
        def chunk_sum(params, hidden, index, targets, weights):
            return jnp.sum(loss(params, shared, index, hidden, targets) * weights)

        def add(sums, chunk):
            grads = jax.value_and_grad(chunk_sum, argnums=(0, 1))
            value, (params_grad, hidden_grad) = grads(wide, *chunk)
            new = (value, jax.tree.map(_transpose_if, params_grad, tall))
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, new), hidden_grad

        start, wide, zeros = zero_sums(params, hidden)
        # The gradient of a tall table is computed as features x vocabulary (see `product`), is
        # summed as that, and transposed once at the end.
        tall = jax.tree.map(lambda p: p.ndim == 2 and p.shape[0] > p.shape[1], wide)
        zeros = jax.tree.map(_transpose_if, zeros, tall)
        tokens = tuple(split(x, chunks) for x in (hidden, index, targets, weights))
        (value, params_grad), hidden_grad = jax.lax.scan(add, (start, zeros), tokens)
        params_grad = jax.tree.map(_transpose_if, params_grad, tall)
        return value, (params_grad, join(hidden_grad, len(hidden)))

    return compute


def chunked_map(function: TokenFunction, chunks: int) -> TokenMap:
    """Maps `function` over all tokens, chunk after chunk."""

    def each(params, hidden, targets, where):
        del where
        if chunks == 1:
            return function(params, hidden, targets)
        tokens = (split(hidden, chunks), split(targets, chunks))
        result = jax.lax.map(lambda chunk: function(params, *chunk), tokens)
        return jax.tree.map(lambda x: join(x, len(hidden)), result)

    return each


def split(x: jax.Array, chunks: int) -> jax.Array:
    """[N, ...] to [chunks, N / chunks, ...]; chunk j holds rows j, j + chunks, ...

    So every device has its part of every chunk. Where N does not divide, zeros fill the last rows.
    """
    padding = ((0, -len(x) % chunks), *((0, 0),) * (x.ndim - 1))
    return jnp.pad(x, padding).reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1)


def join(x: jax.Array, tokens: int) -> jax.Array:
    """The inverse of `split`, of N tokens."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:tokens]


def _transpose_if(x: jax.Array, tall: bool) -> jax.Array:
    return x.T if tall else x
