"""How does a loss avoid storing tokens x vocabulary? By chunks of tokens, each with its gradient in
the forward pass, so that nothing of size V per token outlives its chunk or is computed twice.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def chunked_total(
    loss: Callable[..., jax.Array],
    params: Any,
    shared: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    chunks: int,
) -> jax.Array:
    """sum_i w_i loss_i, a scalar, over chunks of tokens one after the other.

    Args:
      loss: `loss(params, shared, rows [n], hidden [n, D], targets [n]) -> [n]`, a pure function;
        `rows` are the tokens' places in the whole.
      params: pytree; its gradient is summed over chunks in float32.
      shared: pytree for every chunk, such as a random key; not differentiated.
      hidden: [N, D]; N divides into `chunks`.
      targets: [N].
      weights: [N], not differentiated.
      chunks: how many.
    """
    return _forward(loss, params, shared, hidden, targets, weights, chunks)[0]


def split(x: jax.Array, chunks: int) -> jax.Array:
    """[N, ...] to [chunks, N / chunks, ...]; chunk j holds rows j, j + chunks, ...

    So every device has its part of every chunk.
    """
    return x.reshape(-1, chunks, *x.shape[1:]).swapaxes(0, 1)


def _forward(loss, params, shared, hidden, targets, weights, chunks):
    def total(params, hidden, rows, targets, weights):
        return jnp.sum(loss(params, shared, rows, hidden, targets) * weights)

    def add(carry, chunk):
        value, (of_params, of_hidden) = jax.value_and_grad(total, argnums=(0, 1))(wide, *chunk)
        return jax.tree.map(
            lambda a, b: a + b.astype(a.dtype), carry, (value, of_params)
        ), of_hidden

    # Wide before the loss narrows them: no chunk's gradient is rounded before the sum.
    wide = jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)
    start = (
        jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32)),
        jax.tree.map(jnp.zeros_like, wide),
    )
    rows = jnp.arange(hidden.shape[0])
    tokens = tuple(split(x, chunks) for x in (hidden, rows, targets, weights))
    (value, of_params), of_hidden = jax.lax.scan(add, start, tokens)
    of_params = jax.tree.map(lambda g, p: g.astype(p.dtype), of_params, params)
    return value, (of_params, of_hidden.swapaxes(0, 1).reshape(hidden.shape))


def _backward(loss, chunks, saved, gradient):
    of_params, of_hidden = jax.tree.map(lambda g: (g * gradient).astype(g.dtype), saved)
    return of_params, None, of_hidden, None, None


chunked_total.defvjp(_forward, _backward)
