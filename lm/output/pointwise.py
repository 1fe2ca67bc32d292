"""Which losses are functions of a softmax over phi(h W' + b)? Cross-entropy, and what is added to
it against overconfidence, imbalance and drift; heads differ in phi and share the rest.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.base import Head
from lm.output.logit_stats import Statistics, statistics
from lm.output.logit_transform import Phi


class LogitsHead(Head):
    """The likelihood of softmax(z), z = h W' + b, [N, V]; heads differ in how they train it.

    Attributes:
      bias: adds b, [V], zero at first.
    """

    bias: bool = False

    @nn.compact
    def scores(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """The logits [N, V]."""
        return self.biased(self.logits(hidden, self.table(embedding)))

    def biased(self, z: jax.Array) -> jax.Array:
        """Logits [N, V] with the bias, where the head has one."""
        if not self.bias:
            return z
        return z + self.param("bias", nn.initializers.zeros, (self.vocab_size,), self.param_dtype)

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]: -log p(target)."""
        return self.negative_log_likelihood(hidden, targets, embedding)

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N]."""
        return self.statistics(hidden, targets, embedding).cross_entropy

    def statistics(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        mean: bool = False,
        entropy: bool = False,
    ) -> Statistics:
        """What losses need to know of the logits; see `lm.output.logit_stats`."""
        z = self.scores(hidden, embedding)
        return statistics(z, targets, mean, entropy, self.words_axis)

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        return jax.nn.log_softmax(self.scores(hidden, embedding), axis=-1)


class PointwiseHead(LogitsHead):
    """Cross-entropy of softmax(z), z = phi(h W' + b), [N, V].

    loss = c_y ((1 - s) (1 - p_y)^g (lse(z) - z_y) + s (lse(z) - mean_v z_v) + w lse(z)^2 - e H(p))

    Each coefficient at 0 is off, to the bit. None changes the likelihood.

    Attributes:
      z_loss: w, keeps lse near zero (PaLM, 2204.02311).
      label_smoothing: s, the share of uniform labels (1512.00567).
      focal: g, makes little of words that are predicted well (1708.02002).
      confidence_penalty: e, rewards entropy in nats (1701.06548).
      class_weights: c, V numbers, for tasks with few and unequal classes; None: all 1.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    focal: float = 0.0
    confidence_penalty: float = 0.0
    class_weights: tuple[float, ...] | None = None

    splits = True

    @property
    def phi(self) -> Phi:
        """How each logit is shaped."""
        return Phi()

    def theta(self) -> Any:
        """The parameters of phi."""
        return None

    @nn.compact
    def unshaped(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """The logits before phi, [N, V], and phi's parameters."""
        return self.biased(self.logits(hidden, self.table(embedding))), self.theta()

    def scores(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """The logits [N, V] after phi."""
        return self.phi.value(*self.unshaped(hidden, embedding))

    def statistics(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        mean: bool = False,
        entropy: bool = False,
    ) -> Statistics:
        """What losses need to know of the logits; see `lm.output.logit_stats`."""
        z, theta = self.unshaped(hidden, embedding)
        return statistics(z, targets, mean, entropy, self.words_axis, self.phi, theta)

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]; see the class."""
        smoothing, penalty = self.label_smoothing, self.confidence_penalty
        row = self.statistics(hidden, targets, embedding, smoothing != 0, penalty != 0)
        loss = row.cross_entropy
        if self.focal:
            # The floor keeps the power's gradient finite where p_y rounds to 1.
            loss *= jnp.maximum(-jnp.expm1(-row.cross_entropy), 1e-30) ** self.focal
        if smoothing:
            loss = (1.0 - smoothing) * loss + smoothing * (row.normaliser - row.mean)
        if self.z_loss:
            loss += self.z_loss * jnp.square(row.normaliser)
        if penalty:
            loss -= penalty * row.entropy
        if self.class_weights is not None:
            loss *= jnp.asarray(self.class_weights, loss.dtype)[targets]
        return loss
