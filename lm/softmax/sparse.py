"""Sparse weightings: the entmax family, exactly zero below a threshold, and top-k.

The alpha-entmax of a row is p = relu((alpha-1) s - tau)^(1/(alpha-1)) with the threshold tau that
makes it sum to one (Peters, Niculae, Martins 1905.05702): the softmax at alpha = 1, sparsemax at 2.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lm.devices.cpu import fusion_barrier
from lm.devices.platform import platform
from lm.softmax.bisection import entmax_weights
from lm.softmax.dense import softmax
from lm.softmax.entmax_threshold import Expm1, threshold_weights
from lm.softmax.weighting import divide_by_sum, row_length, row_maximum, visible_scores

# An alpha in an array stays above 1, where the formulas divide by alpha - 1; this is float32's next
# number, at which they still hold, and weights are within 3e-7 of the softmax's.
_LEAST = 1.0 + 2.0**-23


def sparsemax(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives relu(s - tau), the nearest point of the simplex (Martins, Astudillo 1602.02068).

    The Jacobian is diag(1_S) - 1_S 1_S' / |S| on the support S.
    """
    return entmax(scores, where, alpha=2.0)


def entmax15(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives relu(s/2 - tau)^2, between softmax and sparsemax (Peters et al. 1905.05702)."""
    return entmax(scores, where, alpha=1.5)


def entmax(
    scores: jax.Array, where: jax.Array | None = None, *, alpha: float | jax.Array = 1.5
) -> jax.Array:
    """Gives relu((alpha-1) s - tau)^(1/(alpha-1)), sparser as alpha grows from 1 on.

    Args:
      scores: [..., S].
      where: boolean, broadcasts to `scores`.
      alpha: a number above 0: 1 is the softmax, 2 sparsemax, and below 1 rows have no zeros. Or an
        array that broadcasts to [..., 1], from 1 to 2, such as one learned per head (Correia,
        Niculae, Martins 1909.00015), which may come as close to 1 as it likes. Its gradient is
        exact, by implicit differentiation.

    Raises:
      ValueError: for a number that is not above 0, or an array with numbers outside [1, 2]; those
        that are not known yet, within `jax.jit`, are taken to the nearest end.
    """
    z = visible_scores(scores, where)
    alpha = checked_alpha(alpha)
    if not isinstance(alpha, int | float):
        return _entmax_at(z, alpha.astype(z.dtype)).astype(scores.dtype)
    if alpha == 1.0:
        return softmax(scores, where)
    return _entmax(z, alpha).astype(scores.dtype)


def asentmax(
    scores: jax.Array,
    where: jax.Array | None = None,
    *,
    alpha: float | jax.Array = 1.5,
    delta: float = 1.0,
    beta: jax.Array | float,
    gamma: jax.Array | float,
) -> jax.Array:
    """Gives entmax((d + b (log n)^c) s): sharper in longer rows, where b is above 0 (2506.16640).

    Of a row of one place, whose weight is 1 at any scale, log n is taken as log 2. In the paper the
    rate and the power are functions of the hidden state; here each head has its own.

    Args:
      scores: [..., S].
      where: boolean, broadcasts to `scores`.
      alpha: as of `entmax`.
      delta: d, the scale that does not change with the length.
      beta: b, a head's rate; at 0 it is the entmax with d = 1.
      gamma: c, a head's power.
    """
    length = jnp.maximum(row_length(scores, where), 2.0)
    z = visible_scores(scores, where)
    # Less their largest, which is then 0 at any scale above 0, and is subtracted without rounding.
    z = visible_scores(z - row_maximum(z), where, masked=0.0)
    scaled = (delta + beta * jnp.log(length) ** gamma) * z
    return entmax(scaled, where, alpha=alpha).astype(scores.dtype)


def checked_alpha(alpha: float | jax.Array = 1.5) -> float | jax.Array:
    """The alpha of `entmax`: a number above 0, or an array, kept above 1.

    Raises:
      ValueError: see `entmax`.
    """
    if isinstance(alpha, int | float):
        if alpha <= 0.0:
            raise ValueError(f"alpha = {alpha} is not above 0")
        return float(alpha)
    known = not isinstance(alpha, Tracer)
    if known and not bool(jnp.all((alpha >= 1.0) & (alpha <= 2.0))):
        raise ValueError("alpha in an array is from 1 (softmax) to 2 (sparsemax); use a number")
    return jnp.clip(alpha, _LEAST, 2.0)


def alpha_relu(
    scores: jax.Array,
    where: jax.Array | None = None,
    *,
    alpha: float = 1.5,
    tau: float | jax.Array | None = None,
    length: jax.Array | None = None,
) -> jax.Array:
    """Gives relu((alpha-1) s - tau)^(1/(alpha-1)): entmax with a frozen threshold (2111.06832).

    tau = None means -n^(1-alpha), the threshold of a row of n equal scores of 0, which then sums
    to one. Alpha is above 1 and at most 2, as for entmax. `length` is n where the scores are a part
    of the row's.
    """
    z = (alpha - 1.0) * visible_scores(scores, where)
    if tau is None:
        tau = -(row_length(z, where, length) ** (1.0 - alpha))
    slack = z - tau
    # Both wheres: at the edge the power's gradient may be 0^0 or infinite.
    positive = slack > 0
    weights = jnp.where(positive, jnp.where(positive, slack, 1.0) ** (1.0 / (alpha - 1.0)), 0.0)
    return weights.astype(scores.dtype)


def top_k(scores: jax.Array, where: jax.Array | None = None, *, k: int = 32) -> jax.Array:
    """Gives the softmax over the k largest visible scores, zero elsewhere (1912.11637).

    Of equal scores the first are chosen, so that exactly k places have weight, or all n visible
    ones where k >= n. The gradient reaches the chosen places alone.
    """
    z = visible_scores(scores, where)
    if k >= z.shape[-1]:
        return softmax(scores, where)
    least, last = _last_chosen(jax.lax.stop_gradient(z), k)
    chosen = (z > least) | ((z == least) & (jnp.arange(z.shape[-1]) <= last))
    return softmax(scores, chosen if where is None else chosen & where)


def _last_chosen(z: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k-th largest value of each row [..., 1] and its place, equal values ranked by place.

    On a TPU by counting, a bit at a time: its compiler takes several times as long for a sort.
    """
    z = jnp.where(z == 0.0, 0.0, z)  # -0, which is ranked below 0, is equal to it
    if platform() != "tpu" or z.dtype != jnp.float32:
        # Without the barrier, XLA's CPU backend takes the slices below for those of a full sort.
        values, indices = fusion_barrier(jax.lax.top_k(z, k))
        return values[..., -1:], indices[..., -1:]
    bits = jax.lax.bitcast_convert_type(z, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ranks = jnp.where(bits < sign, bits | sign, ~bits)  # ordered as the values are
    least = _largest_with(lambda rank: jnp.sum(ranks >= rank, -1, keepdims=True) >= k, z, 32)
    room = k - jnp.sum(ranks > least, -1, keepdims=True)
    places = jnp.arange(z.shape[-1], dtype=jnp.uint32)
    ties = ranks == least
    # The place of the last chosen: more than it leaves room for stand in front of the next one.
    last = _largest_with(
        lambda place: jnp.sum(ties & (places < place), -1, keepdims=True) < room,
        z,
        z.shape[-1].bit_length(),
    )
    value = jnp.where(least >= sign, least ^ sign, ~least)
    return jax.lax.bitcast_convert_type(value, jnp.float32), last.astype(jnp.int32)


def _largest_with(holds: Callable[[jax.Array], jax.Array], z: jax.Array, bits: int) -> jax.Array:
    """The largest number of so many bits, [..., 1] for each row of z, for which `holds` is true;
    0 holds, and it holds for all numbers below one that does.
    """

    def try_bit(step: jax.Array, found: jax.Array) -> jax.Array:
        more = found | (jnp.uint32(1) << (bits - 1 - step).astype(jnp.uint32))
        return jnp.where(holds(more), more, found)

    return jax.lax.fori_loop(0, bits, try_bit, jnp.zeros((*z.shape[:-1], 1), jnp.uint32))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entmax(scores: jax.Array, alpha: float) -> jax.Array:
    solve = threshold_weights if 1.0 < alpha <= 2.0 else entmax_weights
    return solve(scores, alpha)


@_entmax.defjvp
def _entmax_jvp(alpha, primals, tangents):
    weights = _entmax(*primals, alpha)
    return weights, _along_scores(_sensitivity(weights, alpha), *tangents)


@jax.custom_jvp
def _entmax_at(scores: jax.Array, alpha: jax.Array) -> jax.Array:
    return threshold_weights(scores, alpha)


@_entmax_at.defjvp
def _entmax_at_jvp(primals, tangents):
    """Adds to the fixed alpha's rule dp/dalpha = r - ptilde sum r, where ptilde = sens / sum sens
    and r is `change_of`.
    """
    weights, alpha = _entmax_at(*primals), primals[1]
    sensitivity, change = _sensitivity(weights, alpha), change_of(weights, alpha)
    return weights, _along_scores(sensitivity, tangents[0]) + tangents[1] * _centred(
        change, sensitivity
    )


def change_of(weights: jax.Array, alpha: jax.Array, expm1: Expm1 = jnp.expm1) -> jax.Array:
    """How weights change with alpha at a fixed threshold: p (1 - e^-v - v) / (alpha-1)^2 with
    v = (alpha-1) log p, which tends to -p (log p)^2 / 2 as alpha tends to 1.
    """
    logarithm = jnp.log(jnp.where(weights > 0, weights, 1.0))
    v = (alpha - 1.0) * logarithm
    near = jnp.abs(v) < 0.1
    small, large = jnp.where(near, v, 0.0), jnp.where(near, -1.0, v)
    series = 1 / 2 - small * (1 / 6 - small * (1 / 24 - small * (1 / 120 - small * (1 / 720))))
    direct = (expm1(-large) + large) / (large * large)
    return -weights * logarithm**2 * jnp.where(near, series, direct)


def _sensitivity(weights: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """p^(2-alpha) on the support; the inner where keeps 0^0 and its gradient out of the way."""
    if isinstance(alpha, float) and alpha == 2.0:
        return jnp.sign(weights)
    support = weights > 0
    inner = jnp.where(support, weights, 1.0)
    if isinstance(alpha, float) and alpha == 1.5:
        return jnp.where(support, jnp.sqrt(inner), 0.0)
    return jnp.where(support, jnp.exp((2.0 - alpha) * jnp.log(inner)), 0.0)


def _along_scores(sensitivity: jax.Array, direction: jax.Array) -> jax.Array:
    """Gives sens * (d - <sens, d> / sum sens), the derivative of the weights along d."""
    total = jnp.sum(sensitivity, axis=-1, keepdims=True)
    mean = divide_by_sum(jnp.sum(sensitivity * direction, axis=-1, keepdims=True), total)
    return sensitivity * (direction - mean)


def _centred(change: jax.Array, sensitivity: jax.Array) -> jax.Array:
    """The change once the threshold has moved so that the row still sums to one."""
    total = jnp.sum(sensitivity, axis=-1, keepdims=True)
    lost = divide_by_sum(jnp.sum(change, axis=-1, keepdims=True), total)
    return change - sensitivity * lost
