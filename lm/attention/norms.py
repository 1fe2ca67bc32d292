"""Normalises hidden states, queries, keys and contexts, in float32. `NORMS` maps the name of every
norm of hidden states to its class.
"""

from typing import ClassVar

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

    centred: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.centred:
            y = y - fusion_barrier(jnp.mean(y, axis=-1, keepdims=True))
        mean_square = jnp.mean(y * y, axis=-1, keepdims=True)
        y = y * fusion_barrier(jax.lax.rsqrt(mean_square + self.epsilon)) * scale
        if self.centred:
            y += self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        return fusion_barrier(y.astype(self.dtype or x.dtype))


class LayerNorm(RMSNorm):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (1607.06450)."""

    centred: ClassVar[bool] = True


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
