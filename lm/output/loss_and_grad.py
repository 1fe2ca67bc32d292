"""How is a weighted sum of losses differentiated? In its forward pass, by whatever computes it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# `loss(params, shared, rows [n], hidden [n, D], targets [n]) -> [n]`, a pure function; `rows` are
# the tokens' places in the whole, `shared` is for all of them, such as a random key.
Loss = Callable[..., Any]
# `compute(params, shared, rows, hidden, targets, weights) -> value, (of_params, of_hidden)`: the
# sum of weighted losses and its gradients, those of parameters in float32 at least.
Compute = Callable[..., tuple[Any, tuple[Any, Any]]]


def total(
    compute: Compute,
    params: Any,
    shared: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """sum_i w_i loss_i, a scalar.

    Args:
      compute: `chunked`, `gathered` or `sharded` of a loss.
      params: pytree; its gradient is rounded to its types once, after all sums.
      shared: pytree, not differentiated.
      hidden: [N, D].
      targets: [N].
      weights: [N], not differentiated.
    """
    value: Any = _total(compute, params, shared, hidden, targets, weights)
    return value


def zero_sums(params: Any, hidden: jax.Array) -> tuple[jax.Array, Any, Any]:
    """A sum of losses, 0; parameters in float32 at least; and the sums of their gradients, 0.

    Parameters are widened before the loss narrows them, so that no part's gradient is rounded
    before the sum.
    """
    wide = jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)
    start = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
    return start, wide, jax.tree.map(jnp.zeros_like, wide)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(compute, params, shared, hidden, targets, weights):
    return _forward(compute, params, shared, hidden, targets, weights)[0]


def _forward(compute, params, shared, hidden, targets, weights):
    hidden, targets, weights = map(jnp.asarray, (hidden, targets, weights))
    rows = jnp.arange(hidden.shape[0])
    value, (of_params, of_hidden) = compute(params, shared, rows, hidden, targets, weights)
    of_params = jax.tree.map(lambda g, p: g.astype(p.dtype), of_params, params)
    return value, (of_params, of_hidden)


def _backward(compute, saved, gradient):
    of_params, of_hidden = jax.tree.map(lambda g: (g * gradient).astype(g.dtype), saved)
    return of_params, None, of_hidden, None, None


_total.defvjp(_forward, _backward)
