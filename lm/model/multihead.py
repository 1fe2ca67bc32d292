"""Multi-head attention: projections to heads, normalisation and rotation of queries and keys, the
cache of decoding, a mechanism of `ATTENTIONS`, and the projection back.
"""

import flax.linen as nn
import jax

from lm.attention import ATTENTIONS
from lm.attention.base import LayerContext
from lm.attention.kv_cache import read_cache, update_cache
from lm.attention.mask import Mask
from lm.attention.norms import RMSNorm
from lm.attention.positions import AlibiBias, RelativeBias, apply_rotary
from lm.model.config import AttentionConfig


class MultiHeadAttention(nn.Module):
    """Multi-head attention over `inputs`, or from `inputs` to `memory` (cross-attention).

    Attributes:
      config: its sizes, mechanism and projections. With `qk_norm`, queries and keys are normalised
        by their root mean square, per head (2010.04245); the memory's positions mean nothing to
        cross-attention.
    """

    config: AttentionConfig

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        mask: Mask,
        memory: jax.Array | None = None,
        cache_length: int | None = None,
        position_bias: AlibiBias | RelativeBias | None = None,
    ) -> jax.Array:
        """[B, Q, D] -> [B, Q, D].

        Args:
          inputs: [B, Q, D].
          positions: [B, Q], of the queries within their documents.
          mask: who sees whom; with a cache, its offset is where this call's keys are written.
          memory: [B, S, D], the encoder's output, for cross-attention; None: its keys and values
            are in the cache.
          cache_length: S of the key-value cache (collection "cache"); None: no cache.
          position_bias: what distances add to the scores; see `LayerContext`.
        """
        config = self.config
        query = self._project("query", inputs, config.num_heads)
        if config.qk_norm:
            query = RMSNorm(**config.numerics.dtypes, name="query_norm")(query)
        if config.rope_theta is not None and not config.cross:
            query = apply_rotary(query, positions, config.rope_theta)
        if config.score_scale is not None:
            query *= config.score_scale * config.head_dim**0.5  # mechanisms divide by the root
        if config.cross:
            key, value = self._of_memory(memory, cache_length)
        else:
            key, value = self._keys(inputs)
            if config.rope_theta is not None:
                key = apply_rotary(key, positions, config.rope_theta)
            if cache_length is not None:
                assert mask.offset is not None
                key = update_cache(self, "past_key", key, mask.offset, cache_length)
                value = update_cache(self, "past_value", value, mask.offset, cache_length)
        mechanism = ATTENTIONS[config.mechanism](
            weighting=config.weighting,
            options=dict(config.weighting_options),
            learn=config.learn,
            anneal=config.anneal,
            query_chunk_size=config.query_chunk_size,
            **dict(config.options),
            name="mechanism",
        )
        layer = LayerContext(inputs, position_bias, cache_length)
        context = mechanism(query, key, value, mask, layer)
        context = context.reshape(*inputs.shape[:2], config.num_heads * config.head_dim)
        options = config.out_bias, config.out_init_std
        return config.numerics.dense(inputs.shape[-1], "out", *options)(context)

    def _keys(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        config = self.config
        key = self._project("key", source, config.num_kv_heads)
        if config.qk_norm:
            key = RMSNorm(**config.numerics.dtypes, name="key_norm")(key)
        return key, self._project("value", source, config.num_kv_heads)

    def _of_memory(
        self, memory: jax.Array | None, cache_length: int | None
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values of a memory, or of the one that the cache remembers."""
        if memory is None:
            names = "memory_key", "memory_value"
            key, value = (read_cache(self, name) for name in names)
            return key, value
        key, value = self._keys(memory)
        if cache_length is not None:
            key = update_cache(self, "memory_key", key, 0, key.shape[1])
            value = update_cache(self, "memory_value", value, 0, value.shape[1])
        return key, value

    def _project(self, name: str, x: jax.Array, heads: int) -> jax.Array:
        config = self.config
        dense = config.numerics.dense(heads * config.head_dim, name, config.bias)
        return dense(x).reshape(*x.shape[:2], heads, config.head_dim)
