"""Weightings whose threshold is found by bisection: entmax at any alpha, normmax and budget."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.softmax.entmax_threshold import powers
from lm.softmax.weighting import divide_by_sum, row_maximum, visible_scores

# Halvings of the interval of a threshold, for as many digits as float32 and float64 have.
_HALVINGS = {jnp.dtype(jnp.float32): 40, jnp.dtype(jnp.float64): 70}


def entmax_weights(z: jax.Array, alpha: float) -> jax.Array:
    """The alpha-entmax of rows [..., S], minus infinity where masked, at any alpha but 1 above 0.

    Above 2 weights grow more steeply than the scores near the threshold. Below 1 no weight is zero,
    and those of low scores fall as a power of their distance from the highest (1905.05702).
    """
    visible = z > -jnp.inf
    rate = alpha - 1.0
    distance = jnp.where(visible, rate * (z - row_maximum(z)), 0.0)

    def weights(z: jax.Array, tau: jax.Array) -> jax.Array:
        # These powers are of 1 + their argument: near alpha = 1 no digits are lost.
        return jnp.where(visible, powers(z - tau, alpha)[0], 0.0)

    def missing(z: jax.Array, tau: jax.Array) -> jax.Array:
        return 1.0 - jnp.sum(weights(z, tau), axis=-1, keepdims=True)

    # At 0 the largest score alone has the weight 1; at the other end none has more than 1/n.
    start = jnp.zeros_like(row_maximum(z))
    end = jnp.full_like(start, 1.0 - max(z.shape[-1], 1) ** -rate)
    found = weights(distance, _bisect(missing, distance, start, end))
    return divide_by_sum(found, jnp.sum(found, axis=-1, keepdims=True))


def normmax(scores: jax.Array, where: jax.Array | None = None, *, alpha: float = 2.0) -> jax.Array:
    """Gives the p of the simplex with the largest <s, p> - |p|_alpha, which is sparse (1901.02324).

    p = w / sum w with w = relu(s - tau)^(1/(alpha-1)), and tau such that sum w^alpha = 1. Near 1 it
    is one-hot at the largest score; as alpha grows, weights on the support become equal.

    Args:
      scores: [..., S].
      where: boolean, broadcasts to `scores`.
      alpha: a number above 1.

    Raises:
      ValueError: for another number.
    """
    if alpha <= 1.0:
        raise ValueError(f"alpha = {alpha}: normmax needs a number above 1")
    z = visible_scores(scores, where)
    z = z - row_maximum(z)
    power = 1.0 / (alpha - 1.0)

    def powers_of(z: jax.Array, tau: jax.Array, power: float) -> jax.Array:
        slack = z - tau
        positive = slack > 0.0
        return jnp.where(positive, jnp.where(positive, slack, 1.0) ** power, 0.0)

    def missing(z: jax.Array, tau: jax.Array) -> jax.Array:
        return 1.0 - jnp.sum(powers_of(z, tau, power + 1.0), axis=-1, keepdims=True)

    def slope(z: jax.Array, tau: jax.Array) -> jax.Array:
        return (power + 1.0) * jnp.sum(powers_of(z, tau, power), axis=-1, keepdims=True)

    start = jnp.full_like(row_maximum(z), -1.0)
    tau = _bisect(missing, z, start, jnp.zeros_like(start))
    found = powers_of(z, _with_derivatives(missing, slope, z, tau), power)
    return divide_by_sum(found, jnp.sum(found, axis=-1, keepdims=True)).astype(scores.dtype)


def budget(scores: jax.Array, where: jax.Array | None = None, *, budget: float = 2.0) -> jax.Array:
    """Gives min(relu(s - tau), 1) with the sum `budget`: the nearest weights of at most 1 that have
    it, as if so many keys could be chosen; all 1 in rows of no more places (1910.11369).

    Sparsemax at a budget of 1. The gradient is of places with weights within (0, 1), centred.

    Args:
      scores: [..., S].
      where: boolean, broadcasts to `scores`.
      budget: a number above 0.

    Raises:
      ValueError: for another number.
    """
    if budget <= 0.0:
        raise ValueError(f"budget = {budget}: it must be above 0")
    z = visible_scores(scores, where)

    def missing(z: jax.Array, tau: jax.Array) -> jax.Array:
        return budget - jnp.sum(jnp.clip(z - tau, 0.0, 1.0), axis=-1, keepdims=True)

    def slope(z: jax.Array, tau: jax.Array) -> jax.Array:
        inside = (z > tau) & (z < tau + 1.0)
        return jnp.sum(inside, axis=-1, keepdims=True, dtype=z.dtype)

    # Far below where all weights are 1, and where they are 0.
    highest = row_maximum(z)
    lowest = -row_maximum(jnp.where(z > -jnp.inf, -z, -jnp.inf))
    ends = lowest - 2.0, highest
    rounding = 8 * float(jnp.finfo(z.dtype).eps) * max(1.0, budget)  # of the sum
    # Where all weights are 0 or 1, they stay so over a range of thresholds, and none is at an edge
    # in its middle.
    first, last = (
        _bisect(lambda z, tau, more=more: missing(z, tau) + more, z, *ends)
        for more in (rounding, -rounding)
    )
    # From there on, near scores and the threshold have all their digits.
    z = z - (first + last) / 2.0
    tau = _with_derivatives(missing, slope, z, jnp.zeros_like(highest))
    return jnp.clip(z - tau, 0.0, 1.0).astype(scores.dtype)


OfThreshold = Callable[[jax.Array, jax.Array], jax.Array]  # of scores and their rows' thresholds


def _bisect(missing: OfThreshold, z: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """The last threshold from `start` on at which nothing is `missing`, by halving; `start` where
    something is missing there already, and without gradient.
    """
    z = jax.lax.stop_gradient(z)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        last, end = ends
        middle = last + (end - last) / 2.0
        enough = missing(z, middle) <= 0.0
        return jnp.where(enough, middle, last), jnp.where(enough, end, middle)

    return jax.lax.fori_loop(0, _HALVINGS[start.dtype], halve, (start, end))[0]


def _with_derivatives(
    missing: OfThreshold, slope: OfThreshold, z: jax.Array, tau: jax.Array
) -> jax.Array:
    """The threshold with its first and second derivatives, by two steps of Newton's method; `slope`
    is that of `missing`.
    """
    for _ in range(2):
        tau = tau - divide_by_sum(missing(z, tau), slope(z, tau))
    return tau
