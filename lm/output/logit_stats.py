"""What does a loss need to know of a row of logits? Four numbers, with exact gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.devices.cpu import fusion_barrier
from lm.output.logit_transform import Phi


class Statistics(NamedTuple):
    """Of each row of logits z [N, V], shaped, with target y, [N] each; p = softmax(z).

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
    phi: Phi = Phi(),  # noqa: B008 (frozen)
    theta: Any = None,
) -> Statistics:
    """The `Statistics` of phi(z) and targets [N]; `mean` and `entropy` are 0 unless asked.

    The target's exponential is kept out of the sum S of the others. So the loss is
    softplus(log S - z_y) and the target's gradient -S / (S + e^z_y), both exact to the last digits
    as p_y -> 1, where lse(z) - z_y and p_y - 1 have none left.

    With `axis`, inside a `jax.shard_map`, words are split over that mesh axis, z holds those of one
    device, and three collectives of [N] find the rest: the largest logit, the target's, and S. The
    loss must then be the sum of what the devices make of the statistics, alike for each of them.
    """
    found: Any = _statistics(z, theta, targets, mean, entropy, axis, phi)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _statistics(z, theta, targets, mean, entropy, axis, phi):
    return _forward(z, theta, targets, mean, entropy, axis, phi)[0]


def _forward(z, theta, targets, mean, entropy, axis, phi):
    if axis is not None:
        targets = targets - jax.lax.axis_index(axis) * z.shape[-1]
    is_target = _is_target(z, targets)
    top = fusion_barrier(phi.value(_over(jax.lax.pmax, jnp.max(z, axis=-1), axis), theta))
    of_target = phi.value(_over(jax.lax.psum, _own(z, targets, axis), axis), theta)
    exponentials = jnp.where(is_target, 0.0, phi.exponential(z, top[:, None], theta))
    exponentials = fusion_barrier(exponentials)
    others = _over(jax.lax.psum, jnp.sum(exponentials, axis=-1), axis)
    own = jnp.exp(of_target - top)
    total = others + own
    normaliser = top + jnp.log(total)
    nothing = jnp.zeros_like(top)
    found = Statistics(
        cross_entropy=jax.nn.softplus(jnp.log(others) + (top - of_target)),
        normaliser=normaliser,
        mean=nothing,
        entropy=nothing,
    )
    if mean:
        own_mean = jnp.mean(phi.value(z, theta), axis=-1)
        found = found._replace(mean=_over(jax.lax.pmean, own_mean, axis))
    if entropy:
        below = jnp.sum(exponentials * (phi.value(z, theta) - top[:, None]), axis=-1)
        below = _over(jax.lax.psum, below, axis) + own * (of_target - top)
        found = found._replace(entropy=jnp.log(total) - below / total)
    return found, (exponentials, z, theta, targets, others, own, found)


def _backward(mean, entropy, axis, phi, saved, gradient: Statistics):
    exponentials, z, theta, targets, others, own, found = saved
    parts = 1 if axis is None else jax.lax.axis_size(axis)
    if parts > 1:  # each device's part of the loss depends alike on these statistics
        gradient = jax.tree.map(lambda g: g * parts, gradient)
    total = others + own
    scale = (gradient.cross_entropy + gradient.normaliser) / total
    of_target = (gradient.normaliser * own - gradient.cross_entropy * others) / total
    is_target = _is_target(exponentials, targets)
    of_phi = jnp.where(is_target, of_target[:, None], exponentials * scale[:, None])
    if mean:
        of_phi += gradient.mean[:, None] / (of_phi.shape[-1] * parts)
    if entropy:
        log_p = phi.value(z, theta) - found.normaliser[:, None]
        of_phi -= gradient.entropy[:, None] * jnp.exp(log_p) * (log_p + found.entropy[:, None])
    return of_phi * phi.slope(z, theta), phi.of_theta(z, of_phi, theta), None


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
