"""Heads that score each token by itself, without a sum over the vocabulary: logistic and squared
losses.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.base import Head, take_targets
from lm.output.pointwise import LogitsHead


class SigmoidHead(LogitsHead):
    """One binary decision for each token: loss = sum_v softplus(z_v) - z_y, z = h W' + b.

    The sum of V binary cross-entropies. The likelihood is that of sigmoid(z), normalised.

    Attributes:
      bias: adds b, [V], -log V at first: as if one token of V were right.
    """

    bias: bool = True

    @nn.compact
    def raw_logits(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """The logits [N, V]."""
        z = self.project(hidden, self.table(embedding))
        if self.bias:
            start = nn.initializers.constant(-math.log(self.vocab_size))
            z += self.param("bias", start, (self.vocab_size,), self.param_dtype)
        return z

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]."""
        z = self.logits(hidden, embedding)
        return jnp.sum(jax.nn.softplus(z), axis=-1) - take_targets(z, targets)

    negative_log_likelihood = Head.negative_log_likelihood

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        return jax.nn.log_softmax(jax.nn.log_sigmoid(self.logits(hidden, embedding)), axis=-1)


class SquaredHead(LogitsHead):
    """Squared error: loss = (k (z_y - M)^2 + sum_{v != y} z_v^2) / V (Hui, Belkin 2006.07322).

    With k = M = 1 the mean squared error against a one-hot. The sum over the vocabulary is
    h' (W'W) h, so no logit but the target's is ever computed. The likelihood is that of softmax(z).

    Real targets [N] make it regression, with V = 1: loss = (z - y)^2, and the likelihood is that of
    a Gaussian around z of variance 1.

    Attributes:
      emphasis: k, above 0; the paper uses 1, and 15 for a thousand classes.
      margin: M, the target's value; the paper uses 1, and 30 for a thousand classes.
      real_targets: targets are real numbers, of which the head predicts one (V = 1).
    """

    emphasis: float = 1.0
    margin: float = 1.0
    real_targets: bool = False

    @property
    def training_logits(self) -> int:
        """None of size V."""
        return 1

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token, [N]."""
        if self.real_targets:
            return jnp.square(self.values(hidden) - targets)
        if self.is_initializing():
            self.logits(hidden, embedding)
        params = self.variables["params"] if embedding is None or self.bias else {}
        table = params["table"] if embedding is None else embedding
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        table, hidden = table.astype(wide), hidden.astype(wide)
        own = jnp.einsum("nd,nd->n", hidden, table[targets])
        squares = jnp.einsum("nd,nd->n", hidden, hidden @ (table.T @ table))
        if self.bias:
            bias = params["bias"].astype(wide)
            own += bias[targets]
            squares += 2.0 * hidden @ (bias @ table) + jnp.sum(jnp.square(bias))
        error = self.emphasis * jnp.square(own - self.margin) - jnp.square(own)
        return (squares + error) / self.vocab_size

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N]."""
        if self.real_targets:
            return 0.5 * (self.loss(hidden, targets) + math.log(2.0 * math.pi))
        return super().negative_log_likelihood(hidden, targets, embedding)

    def values(self, hidden: jax.Array) -> jax.Array:
        """The predicted numbers of a regression, [N]."""
        return self.logits(hidden)[:, 0]
