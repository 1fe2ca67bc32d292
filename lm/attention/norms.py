"""Normalises queries, keys, contexts and hidden states by their root mean square, in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.devices.cpu import fusion_barrier


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + epsilon) * scale over the last axis (1910.07467)."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean_square = jnp.mean(y * y, axis=-1, keepdims=True)
        inverse = fusion_barrier(jax.lax.rsqrt(mean_square + self.epsilon))
        return fusion_barrier((y * inverse * scale).astype(self.dtype or x.dtype))
