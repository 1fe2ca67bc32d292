"""How is a loss summed over some of the tokens only, at the cost of those? In blocks of members,
as many as there are: shapes are static, the number of blocks is not.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def gathered_total(
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    member: jax.Array,
    block: int,
) -> jax.Array:
    """sum_i w_i loss_i over the tokens i that are members, a scalar, exact for any number of them.

    Members are brought to the front, and blocks of them are computed, with their gradients in the
    forward pass, until none is left.

    Args:
      loss: `loss(params, hidden [n, D], targets [n]) -> [n]`, a pure function, finite for every
        token, member or not.
      params: pytree; its gradient is summed in float32.
      hidden: [N, D].
      targets: [N].
      weights: [N], not differentiated.
      member: boolean [N].
      block: tokens computed at once.
    """
    return _forward(loss, params, hidden, targets, weights, member, block)[0]


def _forward(loss, params, hidden, targets, weights, member, block):
    hidden, targets, weights = map(jnp.asarray, (hidden, targets, weights))
    tokens = hidden.shape[0]
    count = jnp.sum(member)
    # A last, partial block repeats token 0 with weight 0.
    order = jnp.pad(jnp.argsort(~member, stable=True), (0, -tokens % block))
    wide = jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)

    def total(params, hidden, targets, weights):
        return jnp.sum(loss(params, hidden, targets) * weights)

    def unfinished(carry):
        return carry[0] * block < count

    def add(carry):
        index, value, of_params, of_hidden = carry
        here = jax.lax.dynamic_slice(order, (index * block,), (block,))
        real = index * block + jnp.arange(block) < count
        part, (p, h) = jax.value_and_grad(total, argnums=(0, 1))(
            wide, hidden[here], targets[here], jnp.where(real, weights[here], 0.0)
        )
        of_params = jax.tree.map(jnp.add, of_params, p)
        return index + 1, value + part.astype(value.dtype), of_params, of_hidden.at[here].add(h)

    zeros = jax.tree.map(jnp.zeros_like, wide)
    start = (
        0,
        jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32)),
        zeros,
        jnp.zeros_like(hidden),
    )
    _, value, of_params, of_hidden = jax.lax.while_loop(unfinished, add, start)
    of_params = jax.tree.map(lambda g, p: g.astype(p.dtype), of_params, params)
    return value, (of_params, of_hidden)


def _backward(loss, block, saved, gradient):
    of_params, of_hidden = jax.tree.map(lambda g: (g * gradient).astype(g.dtype), saved)
    return of_params, of_hidden, None, None, None


gathered_total.defvjp(_forward, _backward)
