"""A head that trains through its own samples: Gumbel noise, and one-hots with the gradient of soft
weights.
"""

import jax
import jax.numpy as jnp

from lm.output.logit_stats import logit_stats
from lm.output.pointwise import LogitsHead


class GumbelHead(LogitsHead):
    """Cross-entropy of the noisy softmax((z + g) / t), g Gumbel noise (Jang et al. 1611.01144).

    The likelihood is that of softmax(z), of which argmax(z + g) is a sample. Without the rng
    "softmax" there is no noise in the loss.

    Attributes:
      temperature: t, above 0; towards 0 samples become one-hot and gradients noisy.
    """

    temperature: float = 1.0

    random = True

    def loss(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        key: jax.Array | None = None,
        index: jax.Array | None = None,
    ) -> jax.Array:
        """Training loss per token in nats, [N]; `key` and `index` as of `Head.loss`."""
        z = self.logits(hidden, embedding)
        key = self.random_key() if key is None else key
        if key is not None:
            z += _noise(key, jnp.arange(len(z)) if index is None else index, z)
        return logit_stats(z / self.temperature, targets).cross_entropy

    def one_hot(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Samples as one-hots [N, V], with the gradient of softmax((z + g) / t)."""
        z = self.logits(hidden, embedding)
        soft = jax.nn.softmax((z + _noise(key, jnp.arange(len(z)), z)) / self.temperature)
        hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), self.vocab_size, dtype=soft.dtype)
        # The difference is added in this order so that the value is exactly 0 or 1.
        return hard + (soft - jax.lax.stop_gradient(soft))


def _noise(key: jax.Array, index: jax.Array, z: jax.Array) -> jax.Array:
    """Gumbel noise shaped as z [N, V], a stream for each index."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(lambda key: jax.random.gumbel(key, z.shape[1:], z.dtype))(keys)
