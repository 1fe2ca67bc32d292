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
    z: jax.Array,
    targets: jax.Array,
    mean: bool = False,
    entropy: bool = False,
    axis: str | None = None,
) -> Statistics:
    """The `Statistics` of logits [N, V] and targets [N]; `mean` and `entropy` are 0 unless asked.

    The target's exponential is kept out of the sum S of the others. So the loss is
    softplus(log S - z_y) and the target's gradient -S / (S + e^z_y), both exact to the last digits
    as p_y -> 1, where lse(z) - z_y and p_y - 1 have none left.

    With `axis`, inside a `jax.shard_map`, words are split over that mesh axis, z holds those of one
    device, and three collectives of [N] find the rest: the largest logit, the target's, and S. The
    loss must then be the sum of what the devices make of the statistics, alike for each of them.
    """
    found: Any = _statistics(z, targets, mean, entropy, axis)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _statistics(z, targets, mean, entropy, axis):
    return _forward(z, targets, mean, entropy, axis)[0]


def _forward(z, targets, mean, entropy, axis):
    if axis is not None:
        targets = targets - jax.lax.axis_index(axis) * z.shape[-1]
    is_target = _is_target(z, targets)
    top = materialise(_over(jax.lax.pmax, jnp.max(z, axis=-1), axis))
    of_target = _over(jax.lax.psum, _own(z, targets, axis), axis)
    exponentials = materialise(jnp.where(is_target, 0.0, jnp.exp(z - top[:, None])))
    others = _over(jax.lax.psum, jnp.sum(exponentials, axis=-1), axis)
    own = jnp.exp(of_target - top)
    total = others + own
    normaliser = top + jnp.log(total)
    nothing = jnp.zeros_like(top)
    found = Statistics(
        cross_entropy=jax.nn.softplus(jnp.log(others) + (top - of_target)),
        normaliser=normaliser,
        mean=_over(jax.lax.pmean, jnp.mean(z, axis=-1), axis) if mean else nothing,
        entropy=_entropy(z, exponentials, top, own, of_target, total, axis) if entropy else nothing,
    )
    return found, (exponentials, z if entropy else None, targets, others, own, found)


def _entropy(z, exponentials, top, own, of_target, total, axis):
    below = _over(jax.lax.psum, jnp.sum(exponentials * (z - top[:, None]), axis=-1), axis)
    below += own * (of_target - top)
    return jnp.log(total) - below / total


def _backward(mean, entropy, axis, saved, gradient: Statistics):
    exponentials, z, targets, others, own, found = saved
    parts = 1 if axis is None else jax.lax.axis_size(axis)
    if parts > 1:  # each device's part of the loss depends alike on these statistics
        gradient = jax.tree.map(lambda g: g * parts, gradient)
    total = others + own
    scale = (gradient.cross_entropy + gradient.normaliser) / total
    of_target = (gradient.normaliser * own - gradient.cross_entropy * others) / total
    is_target = _is_target(exponentials, targets)
    of_z = jnp.where(is_target, of_target[:, None], exponentials * scale[:, None])
    if mean:
        of_z += gradient.mean[:, None] / (of_z.shape[-1] * parts)
    if entropy:
        log_p = z - found.normaliser[:, None]
        of_z -= gradient.entropy[:, None] * jnp.exp(log_p) * (log_p + found.entropy[:, None])
    return of_z, None


_statistics.defvjp(_forward, _backward)


def _is_target(z: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(targets.dtype, z.shape, 1) == targets[:, None]


def _own(z: jax.Array, targets: jax.Array, axis: str | None) -> jax.Array:
    """The targets' logits, [N]; 0 where another device has them."""
    if axis is None:
        return jnp.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
    here = (targets >= 0) & (targets < z.shape[-1])
    places = jnp.clip(targets, 0, z.shape[-1] - 1)
    return jnp.where(here, jnp.take_along_axis(z, places[:, None], axis=-1)[:, 0], 0.0)


def _over(collective: Any, x: jax.Array, axis: str | None) -> jax.Array:
    return x if axis is None else collective(x, axis)
