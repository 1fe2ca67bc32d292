"""A softmax over squared distances from the hidden state to the tokens' vectors."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.pointwise import PointwiseHead


class GaussianHead(PointwiseHead):
    """Logits -|h - w|^2 / (2 sigma^2): equal Gaussians around the tokens' vectors w.

    |h|^2 is common to all tokens, so this is the softmax of (h . w - |w|^2 / 2) / sigma^2, and is
    computed as that.

    Attributes:
      sigma: width of the Gaussians, above 0.
    """

    sigma: float = 1.0

    @nn.compact
    def raw_logits(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, None]:
        """Logits [N, V], up to a number for each row."""
        table = self.table(embedding)
        z = self.project(hidden, table)
        z -= jnp.sum(jnp.square(table.astype(z.dtype)), axis=-1) / 2.0
        return self.add_bias(z / self.sigma**2), None
