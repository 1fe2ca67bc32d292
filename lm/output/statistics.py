"""What does a loss need to know of a row of logits? Four numbers, with exact gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.materialise import materialise


class Statistics(NamedTuple):
    """Of each row of logits z [N, V] with target y, [N] each; p = softmax(z).

    Attributes:
      cross_entropy: lse(z) - z_y, in nats.
      normaliser: lse(z).
      mean: mean_v z_v.
      entropy: -sum_v p_v log p_v, in nats.
    """

    cross_entropy: jax.Array
    normaliser: jax.Array
    mean: jax.Array
    entropy: jax.Array


def statistics(
    z: jax.Array, targets: jax.Array, mean: bool = False, entropy: bool = False
) -> Statistics:
    """The `Statistics` of logits [N, V] and targets [N]; `mean` and `entropy` are 0 unless asked.

    The target's exponential is kept out of the sum S of the others. So the loss is
    softplus(log S - z_y) and the target's gradient -S / (S + e^z_y), both exact to the last digits
    as p_y -> 1, where lse(z) - z_y and p_y - 1 have none left.
    """
    found: Any = _statistics(z, targets, mean, entropy)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _statistics(z, targets, mean, entropy):
    return _forward(z, targets, mean, entropy)[0]


def _forward(z, targets, mean, entropy):
    is_target = _is_target(z, targets)
    top = materialise(jnp.max(z, axis=-1))
    of_target = jnp.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
    exponentials = materialise(jnp.where(is_target, 0.0, jnp.exp(z - top[:, None])))
    others, own = jnp.sum(exponentials, axis=-1), jnp.exp(of_target - top)
    total = others + own
    normaliser = top + jnp.log(total)
    nothing = jnp.zeros_like(top)
    found = Statistics(
        cross_entropy=jax.nn.softplus(jnp.log(others) + (top - of_target)),
        normaliser=normaliser,
        mean=jnp.mean(z, axis=-1) if mean else nothing,
        entropy=_entropy(z, exponentials, top, own, of_target, total) if entropy else nothing,
    )
    return found, (exponentials, z if entropy else None, targets, others, own, found)


def _entropy(z, exponentials, top, own, of_target, total):
    below = jnp.sum(exponentials * (z - top[:, None]), axis=-1) + own * (of_target - top)
    return jnp.log(total) - below / total


def _backward(mean, entropy, saved, gradient: Statistics):
    exponentials, z, targets, others, own, found = saved
    total = others + own
    scale = (gradient.cross_entropy + gradient.normaliser) / total
    of_target = (gradient.normaliser * own - gradient.cross_entropy * others) / total
    is_target = _is_target(exponentials, targets)
    of_z = jnp.where(is_target, of_target[:, None], exponentials * scale[:, None])
    if mean:
        of_z += gradient.mean[:, None] / of_z.shape[-1]
    if entropy:
        log_p = z - found.normaliser[:, None]
        of_z -= gradient.entropy[:, None] * jnp.exp(log_p) * (log_p + found.entropy[:, None])
    return of_z, None


_statistics.defvjp(_forward, _backward)


def _is_target(z: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(targets.dtype, z.shape, 1) == targets[:, None]
