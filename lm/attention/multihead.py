"""How does a layer attend? It projects to heads, shapes queries and keys (normalisation, rotation),
keeps a cache when it decodes, hands over to a mechanism of `ATTENTIONS`, and projects back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import constant

from lm.attention.attend import attend
from lm.attention.mask import Mask
from lm.attention.positions import alibi_slopes, rotate
from lm.linear import flat_product
from lm.norm import RMSNorm
from lm.softmax import WEIGHTINGS


class ScoreAttention(nn.Module):
    """Scores, a weighting, a weighted sum; owns the weighting's learned parameters and options.

    Attributes:
      weighting: a name of `WEIGHTINGS`.
      options: that weighting's options, or where those to learn start.
      learn: options that are parameters, one per head.
      block: see `attend`.
    """

    weighting: str = "softmax"
    options: Mapping[str, Any] = nn.FrozenDict()
    learn: Sequence[str] = ()
    block: int | None = None

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: Mask,
        slopes: jax.Array | None = None,
    ) -> jax.Array:
        """[B, Q, H, K], [B, S, G, K], [B, S, G, K] -> [B, Q, H, K]."""
        record = WEIGHTINGS[self.weighting]
        heads = query.shape[2]
        learned = {name: self.param(name, init, (heads,)) for name, init in record.learned.items()}
        options = {**record.options, **self.options}
        for name in self.learn:
            start = constant(record.learnable[name].outside(options.pop(name)))
            learned[name] = record.learnable[name].inside(self.param(name, start, (heads,)))
        return attend(
            query,
            key,
            value,
            mask=mask,
            weighting=self.weighting,
            learned=learned,
            options=options,
            slopes=slopes,
            rng=self.make_rng("softmax") if record.random else None,
            block=self.block,
        )


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
            key = self._remember("past_key", key, mask.offset, cache_length)
            value = self._remember("past_value", value, mask.offset, cache_length)
        slopes = None
        if self.positions == "alibi" and memory is None:
            slopes = jnp.asarray(alibi_slopes(self.heads))
        context = self.mechanism(query, key, value, mask, slopes)
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

    def _remember(self, name: str, new: jax.Array, offset: Any, length: int) -> jax.Array:
        """Writes [B, Q, G, K] into the cache at `offset` and returns all of it, [B, S, G, K]."""
        shape = (new.shape[0], length, *new.shape[2:])
        cache = self.variable("cache", name, jnp.zeros, shape, new.dtype)
        cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, new, offset, axis=1)
        return cache.value
