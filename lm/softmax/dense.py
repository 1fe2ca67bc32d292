"""Which weightings give every visible place a positive weight? The softmax and its neighbours.

All take scores s of shape [..., S] and act on the last axis. Below, m is the row's maximum and n
the number of its visible places.
"""

import jax
import jax.numpy as jnp

from lm.materialise import materialise
from lm.softmax.weighting import divide_by_sum, row_length, row_maximum, visible_scores


def softmax(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives e^(s-m) / sum e^(s-m)."""
    return _softmax(visible_scores(scores, where)).astype(scores.dtype)


@jax.custom_jvp
def _softmax(z: jax.Array) -> jax.Array:
    exponentials = materialise(jnp.exp(z - materialise(row_maximum(z))))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return materialise(divide_by_sum(exponentials, total))


@_softmax.defjvp
def _softmax_jvp(primals, tangents):
    """Gives p (dz - <p, dz>): only the weights are kept for the backward pass."""
    weights = _softmax(*primals)
    (direction,) = tangents
    mean = jnp.sum(weights * direction, axis=-1, keepdims=True)
    return weights, weights * (direction - materialise(mean))


def temperature(
    scores: jax.Array, where: jax.Array | None = None, *, temperature: float = 1.0
) -> jax.Array:
    """Gives softmax(s / t): flatter for t > 1, sharper for t < 1 (Hinton et al. 1503.02531)."""
    return softmax(_promote(scores) / temperature, where).astype(scores.dtype)


def softcap(scores: jax.Array, where: jax.Array | None = None, *, cap: float = 50.0) -> jax.Array:
    """Gives softmax(c tanh(s / c)), scores bounded by the cap c (Gemma 2, 2408.00118)."""
    capped = cap * jnp.tanh(_promote(scores) / cap)
    return softmax(capped, where).astype(scores.dtype)


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


def sigmoid(
    scores: jax.Array, where: jax.Array | None = None, *, bias: float | None = None
) -> jax.Array:
    """Gives 1 / (1 + e^-(s+b)), each place by itself; b = None means -log n.

    With b = -log n a row of equal small scores sums to about one (Ramapuram et al. 2409.04431).
    """
    z = visible_scores(scores, where)
    shift = -jnp.log(row_length(scores, where)) if bias is None else bias
    return jax.nn.sigmoid(z + shift).astype(scores.dtype)


def _promote(scores: jax.Array) -> jax.Array:
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
