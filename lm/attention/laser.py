"""LASER: the context is the logarithm of a weighted mean of exponentials of the values."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.base import LayerContext, Mechanism
from lm.attention.mask import Mask
from lm.attention.scores import score_attention


class LaserAttention(Mechanism):
    """log(weighting(scores) e^v), for each number of the values (Duvvuri, Dhillon 2411.03493).

    A score's gradient is that of a log-sum-exp, which stays large where the softmax's vanishes.
    With a single key of weight 1 it is plain attention. Values count as at most 79 and at least -79
    (in float16 9.9), 0.9 of what the exponential can take; so no value but those that a query sees
    moves a bit of its context. Where no weight is above zero, the context is zero.
    """

    scores_alone = True

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`."""
        wide = jnp.promote_types(value.dtype, jnp.float32)
        limit = 0.9 * math.log(float(jnp.finfo(value.dtype).max))
        exponentials = jnp.exp(jnp.clip(value.astype(wide), -limit, limit)).astype(value.dtype)
        mean = score_attention(self)(query, key, exponentials, mask, layer).astype(wide)
        positive = mean > 0.0
        context = jnp.where(positive, jnp.log(jnp.where(positive, mean, 1.0)), 0.0)
        return context.astype(value.dtype)
