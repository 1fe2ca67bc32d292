"""Computes what a loss needs to know of each row of logits: four numbers, with exact gradients."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.output.logit_transform import LogitTransform


class LogitStats(NamedTuple):
    """Of each row of logits z [N, V], shaped, with target y, [N] each; p = softmax(z).

    Attributes:
      cross_entropy: lse(z) - z_y, in nats.
      logsumexp: lse(z).
      mean: mean_v z_v.
      entropy: -sum_v p_v log p_v, in nats.
    """

    cross_entropy: jax.Array
    logsumexp: jax.Array
    mean: jax.Array
    entropy: jax.Array


def logit_stats(
    z: jax.Array,
    targets: jax.Array,
    mean: bool = False,
    entropy: bool = False,
    axis: str | None = None,
    transform: LogitTransform = LogitTransform(),  # noqa: B008 (frozen)
    params: jax.Array | None = None,
) -> LogitStats:
    """The `LogitStats` of f(z) and targets [N], f the `transform` with its `params`.

    `mean` and `entropy` are 0 unless asked for.

    The target's exponential is kept out of the sum S of the others. So the loss is
    softplus(log S - z_y) and the target's gradient -S / (S + e^z_y), both exact to the last digits
    as p_y -> 1, where lse(z) - z_y and p_y - 1 have none left.

    With `axis`, inside a `jax.shard_map`, the vocabulary is split over that mesh axis, z holds the
    logits of one device, and three collectives of [N] find the rest: the largest logit, the
    target's, and S. The loss must then be the sum of what the devices make of these, alike for
    each of them.
    """
    return _logit_stats(z, params, targets, mean, entropy, axis, transform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _logit_stats(z, params, targets, mean, entropy, axis, transform):
    return _forward(z, params, targets, mean, entropy, axis, transform)[0]


def _forward(z, params, targets, mean, entropy, axis, transform):
    if axis is not None:
        targets = targets - jax.lax.axis_index(axis) * z.shape[-1]
    is_target = _is_target(z, targets)
    top = transform.value(_over(jax.lax.pmax, jnp.max(z, axis=-1), axis), params)
    target_logit = _over(jax.lax.psum, _target_logits(z, targets, axis), axis)
    target_logit = transform.value(target_logit, params)
    exponentials = jnp.where(is_target, 0.0, transform.exponential(z, top[:, None], params))
    others = _over(jax.lax.psum, jnp.sum(exponentials, axis=-1), axis)
    own = jnp.exp(target_logit - top)
    total = others + own
    zeros = jnp.zeros_like(top)
    stats = LogitStats(
        cross_entropy=jax.nn.softplus(jnp.log(others) + (top - target_logit)),
        logsumexp=top + jnp.log(total),
        mean=zeros,
        entropy=zeros,
    )
    if mean:
        own_mean = jnp.mean(transform.value(z, params), axis=-1)
        stats = stats._replace(mean=_over(jax.lax.pmean, own_mean, axis))
    if entropy:
        below = jnp.sum(exponentials * (transform.value(z, params) - top[:, None]), axis=-1)
        below = _over(jax.lax.psum, below, axis) + own * (target_logit - top)
        stats = stats._replace(entropy=jnp.log(total) - below / total)
    return stats, (exponentials, z, params, targets, others, own, stats)


def _backward(mean, entropy, axis, transform, saved, grad: LogitStats):
    exponentials, z, params, targets, others, own, stats = saved
    parts = 1 if axis is None else jax.lax.axis_size(axis)
    if parts > 1:  # each device's part of the loss depends alike on these statistics
        grad = jax.tree.map(lambda g: g * parts, grad)
    scale, target_grad = target_grads(grad, others, own)
    is_target = _is_target(exponentials, targets)
    value_grad = jnp.where(is_target, target_grad[:, None], exponentials * scale[:, None])
    if mean:
        value_grad += grad.mean[:, None] / (value_grad.shape[-1] * parts)
    if entropy:
        log_p = transform.value(z, params) - stats.logsumexp[:, None]
        value_grad -= grad.entropy[:, None] * jnp.exp(log_p) * (log_p + stats.entropy[:, None])
    z_grad = value_grad * transform.derivative(z, params)
    return z_grad, transform.params_grad(z, value_grad, params), None


_logit_stats.defvjp(_forward, _backward)


def target_grads(
    grad: LogitStats, others: jax.Array, own: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the gradients of cross-entropy and log-sum-exp multiply the other tokens' exponentials
    with, and the gradient of the target's logit, [N] each.

    Args:
      grad: of the statistics.
      others, own: the sum of the other tokens' exponentials, and the target's, [N].
    """
    total = others + own
    scale = (grad.cross_entropy + grad.logsumexp) / total
    return scale, (grad.logsumexp * own - grad.cross_entropy * others) / total


def _is_target(z: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(targets.dtype, z.shape, 1) == targets[:, None]


def _target_logits(z: jax.Array, targets: jax.Array, axis: str | None) -> jax.Array:
    """The targets' logits, [N]; 0 where another device has them."""
    if axis is None:
        return jnp.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
    here = (targets >= 0) & (targets < z.shape[-1])
    places = jnp.clip(targets, 0, z.shape[-1] - 1)
    return jnp.where(here, jnp.take_along_axis(z, places[:, None], axis=-1)[:, 0], 0.0)


def _over(collective: Callable[..., jax.Array], x: jax.Array, axis: str | None) -> jax.Array:
    return x if axis is None else collective(x, axis)
