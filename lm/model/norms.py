"""Normalises hidden states, in float32: layer norm here, and the table of norms by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.attention.norms import RMSNorm
from lm.devices.cpu import fusion_barrier


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (1607.06450)."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = fusion_barrier(jnp.mean(y, axis=-1, keepdims=True))
        y = y - mean
        mean_square = jnp.mean(y * y, axis=-1, keepdims=True)
        inverse = fusion_barrier(jax.lax.rsqrt(mean_square + self.epsilon))
        return fusion_barrier((y * inverse * scale + bias).astype(self.dtype or x.dtype))


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
