"""How does a layer attend? It projects to heads, shapes queries and keys (normalisation, rotation),
keeps a cache when it decodes, hands over to a mechanism of `ATTENTIONS`, and projects back.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.cache import remember
from lm.attention.mask import Mask
from lm.attention.mechanism import Layer
from lm.attention.positions import alibi_slopes, rotate
from lm.linear import flat_product
from lm.norm import RMSNorm


class MultiHeadAttention(nn.Module):
    """Multi-head attention over `inputs`, or from `inputs` to `memory` (cross-attention).

    Attributes:
      heads, kv_heads, head_size: H, G and K; G divides H.
      mechanism: a module of `ATTENTIONS`.
      positions: "rotary", "alibi", or another name, which is not attention's matter.
      qk_norm: root-mean-square normalisation of queries and keys, per head (2010.04245).
      bias: biases on the four projections.
      kernel_init, out_init: initialisers of the input projections and of the output projection.
      dtype, param_dtype: of computation and of parameters.
    """

    heads: int
    kv_heads: int
    head_size: int
    mechanism: nn.Module
    positions: str
    qk_norm: bool
    bias: bool
    kernel_init: Any
    out_init: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        mask: Mask,
        memory: jax.Array | None = None,
        cache_length: int | None = None,
    ) -> jax.Array:
        """[B, Q, D] -> [B, Q, D].

        Args:
          inputs: [B, Q, D].
          positions: [B, Q], of the queries within their documents.
          mask: who sees whom; with a cache, its offset is where this call's keys are written.
          memory: [B, S, D], the encoder's output; None: self-attention.
          cache_length: S of the key-value cache (collection "cache"); None: no cache.
        """
        source = inputs if memory is None else memory
        query = self._project("query", inputs, self.heads)
        key = self._project("key", source, self.kv_heads)
        value = self._project("value", source, self.kv_heads)
        if self.qk_norm:
            query = RMSNorm(self.dtype, self.param_dtype, name="query_norm")(query)
            key = RMSNorm(self.dtype, self.param_dtype, name="key_norm")(key)
        if self.positions == "rotary" and memory is None:
            query, key = rotate(query, positions), rotate(key, positions)
        if cache_length is not None and memory is None:
            key = remember(self, "past_key", key, mask.offset, cache_length)
            value = remember(self, "past_value", value, mask.offset, cache_length)
        slopes = None
        if self.positions == "alibi" and memory is None:
            slopes = jnp.asarray(alibi_slopes(self.heads))
        layer = Layer(slopes, inputs, cache_length)
        context = self.mechanism(query, key, value, mask, layer)
        context = context.reshape(*inputs.shape[:2], self.heads * self.head_size)
        return self._dense("out", inputs.shape[-1], self.out_init)(context)

    def _project(self, name: str, x: jax.Array, heads: int) -> jax.Array:
        flat = self._dense(name, heads * self.head_size, self.kernel_init)(x)
        return flat.reshape(*x.shape[:2], heads, self.head_size)

    def _dense(self, name: str, features: int, kernel_init: Any) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=self.bias,
            kernel_init=kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            dot_general=flat_product,
            name=name,
        )
