"""Normalises queries, keys, contexts and hidden states by their root mean square, in float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.devices.cpu import fusion_barrier


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + epsilon) * scale over the last axis (1910.07467)."""

    dtype: Any = None
    param_dtype: Any = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean_square = jnp.mean(y * y, axis=-1, keepdims=True)
        inverse = fusion_barrier(jax.lax.rsqrt(mean_square + self.epsilon))
        return fusion_barrier((y * inverse * scale).astype(self.dtype or x.dtype))
