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

    mixes_heads = True

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`."""
        identity = jnp.eye(query.shape[2])
        before, after = (self.param(name, lambda _: identity) for name in ("before", "after"))
        return score_attention(self)(query, key, value, mask, layer, mixing=(before, after))
