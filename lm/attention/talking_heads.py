"""Talking heads: scores are mixed across heads before the weighting, and weights after it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.base import LayerContext, Mechanism
from lm.attention.mask import Mask
from lm.attention.scores import score_attention


class TalkingHeadsAttention(Mechanism):
    """scores'_h = sum_g before[g, h] scores_g, and weights likewise with `after` (2003.02436).

    Both [H, H] start as the identity, which is plain attention. Mixed weights may be negative, and
    their rows sum to anything.
    """

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`."""
        heads = query.shape[2]
        shape = (heads, heads)
        mixing = self.param("before", _identity, shape), self.param("after", _identity, shape)
        return score_attention(self)(query, key, value, mask, layer, mixing=mixing)


def _identity(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    del key
    return jnp.eye(*shape)
