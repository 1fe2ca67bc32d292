"""Heads whose loss is a function of softmax(f(h W' + b)): cross-entropy, and what is added to it
against overconfidence, imbalance and drift; they differ in f and share the rest.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.base import Head
from lm.output.kernels import fused_logit_stats
from lm.output.logit_stats import LogitStats, logit_stats
from lm.output.logit_transform import LogitTransform


class LogitsHead(Head):
    """The likelihood of softmax(z), z = f(h W' + b), [N, V]; heads differ in how they train it, and
    in the `logit_transform` f, here the identity.

    Attributes:
      bias: adds b, [V], zero at first.
    """

    bias: bool = False

    @property
    def logit_transform(self) -> LogitTransform:
        """How each logit is transformed."""
        return LogitTransform()

    def transform_params(self) -> jax.Array | None:
        """The parameters of `logit_transform`."""
        return None

    @nn.compact
    def affine(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """What the logits are made of: h [N, D], W [V, D], and b [V] where there is a bias."""
        return hidden, self.table(embedding), self.bias_vector()

    def raw_logits(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """The logits before the transform, [N, V], up to a number for each row."""
        hidden, table, bias = self.affine(hidden, embedding)
        z = self.project(hidden, table)
        return z if bias is None else z + bias

    def logits(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """The logits [N, V] after the transform."""
        z = self.raw_logits(hidden, embedding)
        return self.logit_transform.value(z, self.transform_params())

    def add_bias(self, z: jax.Array) -> jax.Array:
        """Logits [N, V] with the bias, where the head has one."""
        bias = self.bias_vector()
        return z if bias is None else z + bias

    def bias_vector(self) -> jax.Array | None:
        """The bias [V], where the head has one."""
        if not self.bias:
            return None
        return self.param("bias", nn.initializers.zeros, (self.vocab_size,), self.param_dtype)

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N]."""
        return self.logit_stats(hidden, targets, embedding).cross_entropy

    def logit_stats(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        mean: bool = False,
        entropy: bool = False,
    ) -> LogitStats:
        """What losses need to know of the logits; see `lm.output.logit_stats`."""
        transform = self.logit_transform
        if self.fused:
            affine, dtype = self.affine(hidden, embedding), self.dtype or hidden.dtype
            return fused_logit_stats(
                *affine, targets, dtype, mean, entropy, self.vocab_axis, transform
            )
        z = self.raw_logits(hidden, embedding)
        params = self.transform_params()
        return logit_stats(z, targets, mean, entropy, self.vocab_axis, transform, params)

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        return jax.nn.log_softmax(self.logits(hidden, embedding), axis=-1)


class PointwiseHead(LogitsHead):
    """Cross-entropy of softmax(z), z = f(h W' + b), [N, V], f the `logit_transform`.

    loss = c_y ((1 - s) (1 - p_y)^g (lse(z) - z_y) + s (lse(z) - mean_v z_v) + w lse(z)^2 - e H(p))

    Each coefficient at 0 is off, to the bit. None changes the likelihood.

    Attributes:
      z_loss: w, keeps lse near zero (PaLM, 2204.02311).
      label_smoothing: s, the share of uniform labels (1512.00567).
      focal: g, lowers the weight of targets that are predicted well (1708.02002).
      confidence_penalty: e, rewards entropy in nats (1701.06548).
      class_weights: c, V numbers, for tasks with few and unequal classes; None: all 1.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    focal: float = 0.0
    confidence_penalty: float = 0.0
    class_weights: tuple[float, ...] | None = None

    vocab_shardable = True

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]; see the class."""
        smoothing, penalty = self.label_smoothing, self.confidence_penalty
        stats = self.logit_stats(hidden, targets, embedding, smoothing != 0, penalty != 0)
        loss = stats.cross_entropy
        if self.focal:
            # The floor keeps the power's gradient finite where p_y rounds to 1.
            loss *= jnp.maximum(-jnp.expm1(-stats.cross_entropy), 1e-30) ** self.focal
        if smoothing:
            loss = (1.0 - smoothing) * loss + smoothing * (stats.logsumexp - stats.mean)
        if self.z_loss:
            loss += self.z_loss * jnp.square(stats.logsumexp)
        if penalty:
            loss -= penalty * stats.entropy
        if self.class_weights is not None:
            loss *= jnp.asarray(self.class_weights, loss.dtype)[targets]
        return loss
