"""Gated attention: each head's context is scaled by a gate computed from the layer's inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.base import LayerContext, Mechanism
from lm.attention.mask import Mask
from lm.attention.scores import score_attention
from lm.devices.cpu import dense_product

GATES = ("elementwise", "head")


class GatedAttention(Mechanism):
    """sigmoid(x W) * context, before the output projection (2505.06708).

    W has no bias and starts small, so that gates start near 1/2. Gates of 1 are plain attention; a
    context of zeros stays so.

    Attributes:
      gate: "elementwise", W [D, H K]; or "head", W [D, H], one gate for a head's whole context.
    """

    scores_alone = True

    gate: str = "elementwise"

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`."""
        context = score_attention(self)(query, key, value, mask, layer)
        size = context.shape[3] if self.gate == "elementwise" else 1
        logits = nn.Dense(
            context.shape[2] * size,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.02),
            dtype=layer.inputs.dtype,
            dot_general=dense_product,
            name="gate",
        )(layer.inputs)
        gates = jax.nn.sigmoid(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        gates = gates.reshape(*context.shape[:3], size)
        return (gates * context).astype(context.dtype)
