"""How does a layer attend? It projects to heads, shapes queries and keys (normalisation, rotation),
keeps a cache when it decodes, hands over to a mechanism of `ATTENTIONS`, and projects back.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from lm.attention.base import Layer
from lm.attention.kv_cache import read_cache, update_cache
from lm.attention.mask import Mask
from lm.attention.norms import RMSNorm
from lm.attention.positions import rotate
from lm.devices.cpu import dense_product


class MultiHeadAttention(nn.Module):
    """Multi-head attention over `inputs`, or from `inputs` to `memory` (cross-attention).

    Attributes:
      num_heads, num_kv_heads, head_dim: H, G and K; G divides H.
      mechanism: makes a module of `ATTENTIONS`, given its name.
      rope_theta: turns queries and keys by their places, with this base; None: it does not.
      score_scale: factor of the scores; None: 1 / sqrt(K).
      qk_norm: root-mean-square normalisation of queries and keys, per head (2010.04245).
      bias, out_bias: biases of queries, keys and values, and of the output projection.
      kernel_init, out_init: initialisers of the input projections and of the output projection.
      dtype, param_dtype: of computation and of parameters.
      cross: attends to a memory, whose positions mean nothing to it.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mechanism: Callable[..., nn.Module]
    rope_theta: float | None
    score_scale: float | None
    qk_norm: bool
    bias: bool
    out_bias: bool
    kernel_init: Any
    out_init: Any
    dtype: Any
    param_dtype: Any
    cross: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        mask: Mask,
        memory: jax.Array | None = None,
        cache_length: int | None = None,
        position_bias: Any = None,
    ) -> jax.Array:
        """[B, Q, D] -> [B, Q, D].

        Args:
          inputs: [B, Q, D].
          positions: [B, Q], of the queries within their documents.
          mask: who sees whom; with a cache, its offset is where this call's keys are written.
          memory: [B, S, D], the encoder's output, for cross-attention; None: its keys and values
            are in the cache.
          cache_length: S of the key-value cache (collection "cache"); None: no cache.
          position_bias: what distances add to the scores; see `Layer`.
        """
        query = self._project("query", inputs, self.num_heads)
        if self.qk_norm:
            query = RMSNorm(self.dtype, self.param_dtype, name="query_norm")(query)
        if self.rope_theta is not None and not self.cross:
            query = rotate(query, positions, self.rope_theta)
        if self.score_scale is not None:
            query *= self.score_scale * self.head_dim**0.5  # mechanisms divide by the root
        if self.cross:
            key, value = self._of_memory(memory, cache_length)
        else:
            key, value = self._keys(inputs)
            if self.rope_theta is not None:
                key = rotate(key, positions, self.rope_theta)
            if cache_length is not None:
                key = update_cache(self, "past_key", key, mask.offset, cache_length)
                value = update_cache(self, "past_value", value, mask.offset, cache_length)
        layer = Layer(position_bias, inputs, cache_length)
        context = self.mechanism(name="mechanism")(query, key, value, mask, layer)
        context = context.reshape(*inputs.shape[:2], self.num_heads * self.head_dim)
        return self._dense("out", inputs.shape[-1], self.out_bias, self.out_init)(context)

    def _keys(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = self._project("key", source, self.num_kv_heads)
        if self.qk_norm:
            key = RMSNorm(self.dtype, self.param_dtype, name="key_norm")(key)
        return key, self._project("value", source, self.num_kv_heads)

    def _of_memory(self, memory: Any, cache_length: int | None) -> tuple[jax.Array, jax.Array]:
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
        flat = self._dense(name, heads * self.head_dim, self.bias, self.kernel_init)(x)
        return flat.reshape(*x.shape[:2], heads, self.head_dim)

    def _dense(self, name: str, features: int, bias: bool, kernel_init: Any) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=bias,
            kernel_init=kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            dot_general=dense_product,
            name=name,
        )
