"""Differentiates a weighted sum of losses in its forward pass, by whatever computes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Params = Any  # a tree of arrays

# `loss(params, shared, index [n], hidden [n, D], targets [n]) -> [n]`, a pure function; `index` is
# each token's place among all, `shared` is for all of them, such as a random key.
TokenLoss = Callable[..., jax.Array]
# `compute(params, shared, index, hidden, targets, weights) -> value, (params_grad, hidden_grad)`:
# the sum of weighted losses and its gradients, those of parameters in float32 at least.
LossAndGrad = Callable[..., tuple[jax.Array, tuple[Params, jax.Array]]]


def _loss_sum(
    compute: LossAndGrad,
    params: Params,
    shared: object,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """sum_i w_i loss_i, a scalar; `compute` is `at_once`, `chunked`, `gathered` or `sharded`."""
    return _forward(compute, params, shared, hidden, targets, weights)[0]


def zero_sums(params: Params, hidden: jax.Array) -> tuple[jax.Array, Params, Params]:
    """A sum of losses, 0; parameters in float32 at least; and the sums of their gradients, 0."""
    wide = widened(params)
    zero = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
    return zero, wide, jax.tree.map(jnp.zeros_like, wide)


def widened(params: Params) -> Params:
    """Parameters in float32 at least, before the loss narrows them, so that no part's gradient is
    rounded before the sum.
    """
    return jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)


def at_once(loss: TokenLoss) -> LossAndGrad:
    """Computes a `loss_sum` of all tokens together."""

    def compute(params, shared, index, hidden, targets, weights):
        def weighted_sum(params, hidden):
            return jnp.sum(loss(params, shared, index, hidden, targets) * weights)

        return jax.value_and_grad(weighted_sum, argnums=(0, 1))(widened(params), hidden)

    return compute


def _forward(compute, params, shared, hidden, targets, weights):
    hidden, targets, weights = map(jnp.asarray, (hidden, targets, weights))
    index = jnp.arange(hidden.shape[0])
    value, (params_grad, hidden_grad) = compute(params, shared, index, hidden, targets, weights)
    params_grad = jax.tree.map(lambda g, p: g.astype(p.dtype), params_grad, params)
    return value, (params_grad, hidden_grad)


def _backward(compute, saved, grad):
    params_grad, hidden_grad = jax.tree.map(lambda g: (g * grad).astype(g.dtype), saved)
    return params_grad, None, hidden_grad, None, None


loss_sum = jax.custom_vjp(_loss_sum, nondiff_argnums=(0,))
loss_sum.defvjp(_forward, _backward)
