"""Sampled weightings: the Gumbel softmax, whose draws let gradients through."""

import jax
import jax.numpy as jnp

from lm.softmax.dense import softmax
from lm.softmax.weighting import visible_scores


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
