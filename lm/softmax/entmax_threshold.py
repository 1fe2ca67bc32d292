"""Finds the threshold of an entmax by Newton's method from the left, without sorting.

A row of z = (alpha-1) (s - max) has the weights relu(z - tau)^p with p = 1/(alpha-1); tau is the
number in [-1, 0) at which they sum to one. The p-norm of relu(z - tau) is convex and decreasing in
tau and nearly straight, so Newton's steps on it rise to the root, never pass it, and are few.

Two things make it fast. The threshold of some places of a row is a lower bound of the threshold of
all: a few cheap steps over the maxima of groups of places give a start from which two or three
sweeps over the row are enough. And on a CPU the sweeps run over blocks of rows that stay in cache.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.devices.platform import PORTABLE, device_count, platform
from lm.softmax.weighting import divide_by_sum

# Rows of this many places start from the maxima of groups; their number is a few vectors wide.
_LONG_ROW, _GROUPS, GROUP_SWEEPS = 512, 128, 4
# A block of rows, several copies of which stay in a core's cache.
_BLOCK_BYTES = 128 * 1024
# Far above the two to seven sweeps that rows need.
MAX_SWEEPS = 60
# Those of a program without loops; random rows of up to 8,192 places need twelve at most.
_UNROLLED_SWEEPS = 16

Alpha = float | jax.Array
Expm1 = Callable[[jax.Array], jax.Array]


def threshold_weights(scores: jax.Array, alpha: Alpha) -> jax.Array:
    """The alpha-entmax of every row.

    Args:
      scores: [..., S] in float32 or float64, minus infinity where masked.
      alpha: a Python float, or an array that broadcasts to [..., 1]; above 1, at most 2. At 1.5
        and 2 a float takes products for powers; near 1 all is stable (log1p of (alpha-1) s).

    Returns:
      [..., S]; a row sums to one but for rounding. Zeros where no place is visible.
    """
    if not isinstance(alpha, float):
        alpha = jnp.broadcast_to(alpha, (*scores.shape[:-1], 1))
    # On a CPU blocks of rows stay in its cache: without, entmax takes 1.18 to 1.39 times as long.
    # With several devices the leading axes may be split over them, and a loop over rows would
    # gather what is split; accelerators want the whole array at once.
    alone = platform() == "cpu" and device_count() == 1
    top, tau, total = (_in_blocks if alone else _threshold)(scores, alpha)
    weights, _ = powers((alpha - 1.0) * (scores - top) - tau, alpha)
    return weights * divide_by_sum(jnp.ones_like(total), total)


def powers(slack: jax.Array, alpha: Alpha) -> tuple[jax.Array, jax.Array]:
    """relu(z - tau)^p and its derivative over p, relu(z - tau)^(p-1).

    The slack is z - tau where the powers are products. Otherwise it is z - tau - 1, in which near
    alpha = 1, where all of it is small, no digits are lost.
    """
    if isinstance(alpha, float) and alpha == 2.0:
        slack = jax.nn.relu(slack)
        return slack, (slack > 0.0).astype(slack.dtype)
    if isinstance(alpha, float) and alpha == 1.5:
        slack = jax.nn.relu(slack)
        return slack * slack, slack
    slack = jnp.maximum(slack, -1.0)
    exponent = (2.0 - alpha) / (alpha - 1.0)
    lower = jnp.where(slack > -1.0, jnp.exp(exponent * jnp.log1p(slack)), 0.0)
    return lower * (1.0 + slack), lower


def first_threshold(alpha: Alpha) -> float:
    """A lower bound of every row's threshold, in the slack's terms."""
    return -1.0 if isinstance(alpha, float) and alpha in (1.5, 2.0) else 0.0


def newton_step(
    tau: jax.Array, total: jax.Array, slope: jax.Array, alpha: Alpha, expm1: Expm1 = jnp.expm1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Newton's step on the p-norm: the next threshold, by how much it moved, and the sum then.

    Args:
      tau: the threshold of each row.
      total, slope: the sums of its `powers`.
      alpha: above 1, at most 2.
      expm1: e^y - 1.
    """
    rate = alpha - 1.0
    p = 1.0 / rate
    # (total - total^(1-1/p)) / slope
    surplus = -expm1(-rate * jnp.log(jnp.where(total == 0.0, 1.0, total)))
    moved = tau + jax.nn.relu(divide_by_sum(total * surplus, slope))
    return moved, moved - tau, total - p * (moved - tau) * slope


def is_missing(move: jax.Array, places: int, alpha: Alpha) -> jax.Array:
    """Whether a step of this size may leave more of a row's sum missing than rounding does.

    The slope of a place's power is at most p, and changes by at most so much.
    """
    p = 1.0 / (alpha - 1.0)
    fixed = isinstance(alpha, float)
    bend = (max if fixed else jnp.maximum)(0.5 * p * (p - 1.0), 1.0)
    power = (min if fixed else jnp.minimum)(p, 2.0)
    return places * bend * move**power > 16 * float(jnp.finfo(move.dtype).eps)


def _threshold(scores: jax.Array, alpha: Alpha) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of [..., S]: each row's maximum, the threshold in the slack's terms, the sum of powers."""
    unrolled = platform() == PORTABLE
    groups = scores if unrolled else _group_maxima(scores)
    top = jnp.max(groups, axis=-1, keepdims=True, initial=-jnp.inf)
    top = jnp.where(top == -jnp.inf, 0.0, top)
    rate = alpha - 1.0
    places = scores.shape[-1]

    def sweep(z: jax.Array, tau: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        weights, slopes = powers(z - tau, alpha)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return newton_step(tau, total, jnp.sum(slopes, axis=-1, keepdims=True), alpha)

    def unfinished(carry) -> jax.Array:
        sweeps, _, move, _ = carry
        return (sweeps < MAX_SWEEPS) & jnp.any(is_missing(move, places, alpha))

    tau = jnp.full_like(top, first_threshold(alpha))
    if groups is not scores:
        leaders = rate * (groups - top)
        tau = jax.lax.fori_loop(0, GROUP_SWEEPS, lambda _, tau: sweep(leaders, tau)[0], tau)
    z = rate * (scores - top)
    if unrolled:
        tau, _, total = sweep(z, tau)
        for _ in range(_UNROLLED_SWEEPS - 1):
            tau, _, total = sweep(z, tau)
        return top, tau, total
    _, tau, _, total = jax.lax.while_loop(
        unfinished, lambda carry: (carry[0] + 1, *sweep(z, carry[1])), (1, *sweep(z, tau))
    )
    return top, tau, total


def _group_maxima(scores: jax.Array) -> jax.Array:
    """The maxima of `_GROUPS` groups of a long row, and the places left over; else all places."""
    *rows, places = scores.shape
    if places < _LONG_ROW:
        return scores
    even = places - places % _GROUPS
    maxima = jnp.max(scores[..., :even].reshape(*rows, -1, _GROUPS), axis=-2)
    return jnp.concatenate([maxima, scores[..., even:]], axis=-1)


def _in_blocks(scores: jax.Array, alpha: Alpha) -> tuple[jax.Array, ...]:
    """`_threshold`, a cache's worth of rows at a time."""
    places = scores.shape[-1]
    count = scores.size // max(1, places)
    size = max(1, _BLOCK_BYTES // max(1, places * scores.dtype.itemsize))
    if count <= size:
        return _threshold(scores, alpha)
    rows = scores.reshape(count, places)
    of_rows = jnp.reshape(alpha, (count, 1)) if isinstance(alpha, jax.Array) else alpha
    blocks = -(-count // size)

    def one(start: jax.Array) -> tuple[jax.Array, ...]:
        def part(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size)

        return _threshold(part(rows), part(of_rows) if isinstance(of_rows, jax.Array) else of_rows)

    # The last block starts early enough to be whole; what it repeats is dropped.
    starts = jnp.minimum(jnp.arange(blocks) * size, count - size)
    last = (blocks - 1) * size - count
    found = jax.lax.map(one, starts)
    joined = (jnp.concatenate([x[:-1].reshape(-1, 1), x[-1, last:]]) for x in found)
    return tuple(x.reshape(*scores.shape[:-1], 1) for x in joined)
