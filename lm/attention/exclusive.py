"""Exclusive attention: a position's own value is taken out of its context."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.base import LayerContext, Mechanism
from lm.attention.mask import Mask
from lm.attention.scores import score_attention


class ExclusiveAttention(Mechanism):
    """y - (y.v) v / |v|^2, y a position's context and v its own value (XSA, Zhai 2603.09078).

    What is left is orthogonal to v, whose part the residual has without attention. A value of zeros
    takes nothing out.
    """

    scores_alone = True
    self_only = True

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`; a query's own value is that of its position."""
        queries, heads = query.shape[1:3]
        context = score_attention(self)(query, key, value, mask, layer)
        own = value
        if layer.cache_length is not None and mask.offset is not None:
            own = jax.lax.dynamic_slice_in_dim(value, mask.offset, queries, axis=1)
        wide = jnp.promote_types(value.dtype, jnp.float32)
        own = jnp.repeat(own, heads // own.shape[2], axis=2).astype(wide)
        square = jnp.sum(own * own, axis=-1, keepdims=True)
        share = jnp.sum(context * own, axis=-1, keepdims=True) / jnp.where(square == 0, 1.0, square)
        return (context - share * own).astype(context.dtype)
