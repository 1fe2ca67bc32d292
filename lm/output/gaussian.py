"""What if words were points, and nearness probability? A softmax over squared distances."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.pointwise import PointwiseHead


class GaussianHead(PointwiseHead):
    """Logits -|h - w|^2 / (2 sigma^2): equal Gaussians around the words' vectors w.

    |h|^2 is common to all words, so this is the softmax of (h . w - |w|^2 / 2) / sigma^2, and is
    computed as that.

    Attributes:
      sigma: width of the Gaussians, above 0.
    """

    sigma: float = 1.0

    @nn.compact
    def unshaped(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Logits [N, V], up to a number for each row."""
        table = self.table(embedding)
        z = self.logits(hidden, table)
        z -= jnp.sum(jnp.square(table.astype(z.dtype)), axis=-1) / 2.0
        return self.biased(z / self.sigma**2), None
