"""What does the plain softmax head compute? lse(z) - z_y over capped and scaled logits."""

import jax
import jax.numpy as jnp

from lm.output.pointwise import PointwiseHead


class SoftmaxHead(PointwiseHead):
    """Cross-entropy of softmax(z), z = c tanh((h W' + b) / (t c)).

    Attributes:
      cap: c, bounds the logits (Gemma 2, 2408.00118); None: no tanh.
      temperature: t.
      The others are those of `PointwiseHead`.
    """

    cap: float | None = None
    temperature: float = 1.0

    def shape(self, z: jax.Array) -> jax.Array:
        """Temperature, then cap."""
        if self.temperature != 1.0:
            z /= self.temperature
        if self.cap is not None:
            z = self.cap * jnp.tanh(z / self.cap)
        return z
