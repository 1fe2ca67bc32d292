"""What does the plain softmax head compute? lse(z) - z_y, and the options that people add."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.head import Head


class SoftmaxHead(Head):
    """Cross-entropy of softmax(z), z = c tanh((h W' + b) / (t c)).

    loss = (1 - s) (lse(z) - z_y) + s (lse(z) - mean_v z_v) + w lse(z)^2

    Attributes:
      bias: adds b, [V].
      cap: c, bounds the logits (Gemma 2, 2408.00118); None: no tanh.
      temperature: t.
      z_loss: w, keeps lse near zero (PaLM, 2204.02311). 0 is off, to the bit.
      label_smoothing: s, the share of uniform labels (1512.00567). 0 is off, to the bit.
    """

    bias: bool = False
    cap: float | None = None
    temperature: float = 1.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    @nn.compact
    def scores(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """The logits [N, V] after bias, temperature and cap."""
        z = self.logits(hidden, self.table(embedding))
        if self.bias:
            z += self.param("bias", nn.initializers.zeros, (self.vocab_size,), self.param_dtype)
        if self.temperature != 1.0:
            z /= self.temperature
        if self.cap is not None:
            z = self.cap * jnp.tanh(z / self.cap)
        return z

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]: cross-entropy with smoothing and z-loss."""
        z = self.scores(hidden, embedding)
        normaliser = jax.nn.logsumexp(z, axis=-1)
        loss = normaliser - _of_targets(z, targets)
        if self.label_smoothing:
            uniform = normaliser - jnp.mean(z, axis=-1)
            loss = (1.0 - self.label_smoothing) * loss + self.label_smoothing * uniform
        if self.z_loss:
            loss += self.z_loss * jnp.square(normaliser)
        return loss

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        return jax.nn.log_softmax(self.scores(hidden, embedding), axis=-1)


def _of_targets(z: jax.Array, targets: jax.Array) -> jax.Array:
    """z_y, [N], of z [N, V]."""
    return jnp.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
