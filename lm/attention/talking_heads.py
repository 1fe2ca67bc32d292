"""What if heads confer? Scores are mixed across heads before the weighting, weights after it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.base import ALONE, Layer, Mechanism
from lm.attention.mask import Mask
from lm.attention.scores import score_attention


class TalkingHeadsAttention(Mechanism):
    """scores'_h = sum_g before[g, h] scores_g, and weights likewise with `after` (2003.02436).

    Both [H, H] start as the identity, which is plain attention. Mixed weights may be negative, and
    their rows sum to anything.
    """

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: Layer = ALONE
    ) -> jax.Array:
        """See `Mechanism`."""
        heads = query.shape[2]
        shape = (heads, heads)
        mixing = self.param("before", _identity, shape), self.param("after", _identity, shape)
        return score_attention(self)(query, key, value, mask, layer, mixing=mixing)


def _identity(key: Any, shape: tuple[int, int]) -> jax.Array:
    del key
    return jnp.eye(*shape)
