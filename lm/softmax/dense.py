"""Dense weightings: the softmax and variants, which give every visible place some weight.

All take scores s of shape [..., S] and act on the last axis. Below, m is the row's maximum and n
the number of its visible places.
"""

import jax
import jax.numpy as jnp

from lm.softmax import exponents
from lm.softmax.weighting import divide_by_sum, row_length, row_maximum, visible_scores


def softmax(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives e^(s-m) / sum e^(s-m)."""
    return _softmax(visible_scores(scores, where)).astype(scores.dtype)


@jax.custom_jvp
def _softmax(z: jax.Array) -> jax.Array:
    exponentials = jnp.exp(z - row_maximum(z))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return divide_by_sum(exponentials, total)


@_softmax.defjvp
def _softmax_jvp(primals, tangents):
    """Gives p (dz - <p, dz>): only the weights are kept for the backward pass."""
    weights = _softmax(*primals)
    (direction,) = tangents
    mean = jnp.sum(weights * direction, axis=-1, keepdims=True)
    return weights, weights * (direction - mean)


def temperature(
    scores: jax.Array, where: jax.Array | None = None, *, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """Gives softmax(s / t): flatter for t > 1, sharper for t < 1 (Hinton et al. 1503.02531)."""
    z = visible_scores(scores, where, masked=0.0)
    x = exponents.temperature(z, temperature=temperature)
    return softmax(x, where).astype(scores.dtype)


def softcap(
    scores: jax.Array, where: jax.Array | None = None, *, cap: float | jax.Array = 50.0
) -> jax.Array:
    """Gives softmax(c tanh(s / c)), scores bounded by the cap c > 0 (Gemma 2, 2408.00118)."""
    z = visible_scores(scores, where, masked=0.0)
    return softmax(exponents.softcap(z, cap=cap), where).astype(scores.dtype)


def log_length(
    scores: jax.Array, where: jax.Array | None = None, *, reference_length: float = 512.0
) -> jax.Array:
    """Gives softmax(s log n / log n0): as sharp in long rows as in short (2202.12172).

    Rows of n = n0 > 1 visible places are the softmax, longer ones sharper. At n = 1 the factor is
    log 1 = 0, and the one place has all the weight, as ever.
    """
    n = row_length(scores, where)
    z = visible_scores(scores, where, masked=0.0)
    x = exponents.log_length(z, n, reference_length=reference_length)
    return softmax(x, where).astype(scores.dtype)


def ssmax(
    scores: jax.Array, where: jax.Array | None = None, *, scale: jax.Array | float
) -> jax.Array:
    """Gives softmax(a s log n), the scale a learned per head (Nakanishi 2501.19399).

    Equal to n^(a s) / sum n^(a s), so that attention does not fade as rows grow. The softmax at
    a log n = 1.
    """
    z = visible_scores(scores, where, masked=0.0)
    x = exponents.ssmax(z, row_length(scores, where), scale=scale)
    return softmax(x, where).astype(scores.dtype)


def off_by_one(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives e^s / (1 + sum e^s): a head may attend to nothing (Miller 2023).

    Equal to the softmax with one more key of score zero and value zero.
    """
    return sink(scores, where, sink=0.0)


def sink(
    scores: jax.Array, where: jax.Array | None = None, *, sink: jax.Array | float
) -> jax.Array:
    """Gives e^s / (e^b + sum e^s), the sink b learned per head (gpt-oss, 2508.10925).

    Equal to softmax(s) * sigmoid(lse(s) - b), and to one more key with score b and value zero.
    """
    z = visible_scores(scores, where)
    sink = jnp.asarray(sink, z.dtype)
    top = jnp.maximum(row_maximum(z), jax.lax.stop_gradient(sink))
    exponentials = jnp.exp(z - top)
    total = jnp.sum(exponentials, axis=-1, keepdims=True) + jnp.exp(sink - top)
    return divide_by_sum(exponentials, total).astype(scores.dtype)


def taylor(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives (1 + s + s^2/2) / sum, the exponential's second-order series (1511.05042).

    The numerator is at least 1/2, so that weights are positive. Scores are taken as they are, not
    less their maximum; below s = -1 weights grow again.
    """
    z = visible_scores(scores, where, masked=0.0)
    series = visible_scores(exponents.taylor_series(z), where, masked=0.0)
    return divide_by_sum(series, jnp.sum(series, axis=-1, keepdims=True)).astype(scores.dtype)


def softplus_l1(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives softplus(s) / sum, about proportional to large scores (2501.13428).

    Computed as the softmax of log softplus(s), which is s for very negative s, where softplus
    itself would be zero in a whole row.
    """
    z = visible_scores(scores, where, masked=0.0)
    return softmax(exponents.softplus_l1(z), where).astype(scores.dtype)


def softpick(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives max(e^s - 1, 0) / sum abs(e^s - 1): places below 0 get nothing, and take some of the
    sum, so that a head needs no sink (Zuhri, Fuadi, Aji 2504.20966).

    A row sums to at most one, and to one where no score is below 0; a row of zeros has zeros.
    """
    z = visible_scores(scores, where, masked=0.0)
    top = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True, initial=0.0))
    is_large = z > 1.0
    small, large = jnp.where(is_large, 0.0, z), jnp.where(is_large, z, top)
    near = jnp.exp(-top) * jnp.expm1(small)
    terms = jnp.where(is_large, jnp.exp(large - top) - jnp.exp(-top), near)
    total = jnp.sum(jnp.abs(terms), axis=-1, keepdims=True)
    return divide_by_sum(jax.nn.relu(terms), total).astype(scores.dtype)


def cog(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives sign(s) softmax(abs s): places may subtract (2411.07176).

    The absolute values of a row sum to one, its weights do not. The sign of 0 is taken as +1.
    """
    z = visible_scores(scores, where, masked=0.0)
    return (exponents.sign(z) * softmax(exponents.cog(z), where)).astype(scores.dtype)


def gumbel_softmax(
    scores: jax.Array,
    where: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 1.0,
    hard: bool = False,
    key: jax.Array | None = None,
) -> jax.Array:
    """Gives softmax((s + g) / t), g = -log(-log u), u uniform in (0, 1) (1611.01144, 1611.00712).

    The largest place of a row is distributed as softmax(s). As t falls to 0 rows tend to one-hot.

    Args:
      scores: [..., S].
      where: boolean, broadcasts to `scores`.
      temperature: t, above 0.
      hard: rows are one-hot at the largest place, the first of equal ones; the gradient is that
        of the soft weights (straight-through).
      key: a random key. None: no noise, the row's mode, as for evaluation.
    """
    z = visible_scores(scores, where, masked=0.0)
    if key is not None:
        z = z + jax.random.gumbel(key, z.shape, z.dtype)
    soft = softmax(z / temperature, where)
    if hard:
        places = jax.lax.broadcasted_iota(jnp.int32, soft.shape, soft.ndim - 1)
        largest = (places == jnp.argmax(soft, axis=-1, keepdims=True)) & (soft > 0)
        # In this order the difference is exactly zero, and rows are exactly one-hot.
        soft = largest.astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft))
    return soft.astype(scores.dtype)
