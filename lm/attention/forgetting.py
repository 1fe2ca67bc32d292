"""Forgetting attention: a gate at every position lowers the scores of all keys before it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.base import LayerContext, Mechanism
from lm.attention.kv_cache import update_cache
from lm.attention.mask import ALL_SEGMENTS, Mask
from lm.attention.scores import score_attention
from lm.devices.platform import PORTABLE, platform


class ForgettingAttention(Mechanism):
    """score_ij += sum over j < l <= i of log f_l, with f = sigmoid(x W + b) per head (2503.02130).

    f = 1 is plain attention. Gates and their sums are float32 and begin anew in each document.
    Causal only: a gate lowers earlier keys alone.

    Attributes:
      forget_bias: what b starts from: 0 halves a weight at every step; 4 keeps 98 %.
    """

    forget_bias: float = 0.0

    causal_only = True

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`.

        Raises:
          ValueError: where the mask is not causal.
        """
        if not mask.causal:
            raise ValueError("forgetting is defined for causal attention only")
        queries, heads = query.shape[1:3]
        logits = nn.Dense(
            heads,
            kernel_init=nn.initializers.normal(0.02),
            bias_init=nn.initializers.constant(self.forget_bias),
            dtype=jnp.float32,
            name="gate",
        )(layer.inputs)
        kept = jax.nn.log_sigmoid(logits)
        if layer.cache_length is None or mask.offset is None:
            of_keys = of_queries = running_sum(kept, mask.segments)
        else:
            past = update_cache(self, "past_gate", kept, mask.offset, layer.cache_length)
            if mask.padding is not None:  # between what stands before a text, and the text
                past = jnp.where(mask.padding[:, :, None], past, 0.0)
            of_keys = running_sum(past)
            of_queries = jax.lax.dynamic_slice_in_dim(of_keys, mask.offset, queries, axis=1)
        return score_attention(self)(query, key, value, mask, layer, gates=(of_queries, of_keys))


def running_sum(x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    """Sums [B, L, H] over the positions so far, from 0 wherever `segments` [B, L] changes.

    A sum over the whole row would serve, as differences count; but rounding would then let one
    document see the others. What all documents see (`ALL_SEGMENTS`) stands before each of them,
    whose sums begin with its total.
    """
    if segments is None:
        return jnp.cumsum(x, axis=1)
    if platform() == PORTABLE:  # a scan over any number of positions is a loop
        same = segments[:, :, None] == segments[:, None, :]
        return jnp.einsum("bqs,bsh->bqh", jnp.tril(same).astype(x.dtype), x)
    shared = (segments == ALL_SEGMENTS)[:, :, None]
    before = jnp.sum(jnp.where(shared, x, 0.0), axis=1, keepdims=True)
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    starts = jnp.broadcast_to(starts[:, :, None], x.shape)

    def join(left, right):
        (x, started), (y, starts) = left, right
        return jnp.where(starts, y, x + y), started | starts

    sums = jax.lax.associative_scan(join, (x, starts), axis=1)[0]
    return jnp.where(shared, sums, sums + before)
