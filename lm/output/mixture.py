"""How does a head pass the rank of its features? By mixing softmaxes of one hidden state."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.head import Head


class MixtureHead(Head):
    """Mixture of softmaxes: log sum_k pi_k softmax(tanh(h U_k + c_k) W') (Yang et al. 1711.03953).

    Mixed in log space, log p_v = lse_k(log pi_k + z_kv - lse_v z_kv): no small constant inside a
    logarithm. With one component it is the softmax on tanh(h U + c).

    Attributes:
      mixtures: K, number of softmaxes; the paper uses 10 to 15.
    """

    mixtures: int = 4

    @property
    def logits_per_token(self) -> int:
        """A token has K rows of logits."""
        return self.mixtures * self.vocab_size

    @nn.compact
    def components(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log priors [N, K] and logits [N, K, V]."""
        dense = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        priors = nn.Dense(self.mixtures, use_bias=False, name="prior", **dense)(hidden)
        contexts = jnp.tanh(nn.Dense(self.mixtures * self.features, name="latent", **dense)(hidden))
        logits = self.logits(contexts.reshape(-1, self.features), self.table(embedding))
        log_priors = jax.nn.log_softmax(priors.astype(logits.dtype), axis=-1)
        return log_priors, logits.reshape(-1, self.mixtures, self.vocab_size)

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]: -log p(target)."""
        return self.negative_log_likelihood(hidden, targets, embedding)

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N], without the mixture's other words."""
        log_priors, logits = self.components(hidden, embedding)
        of_targets = jnp.take_along_axis(logits, targets[:, None, None], axis=-1)[..., 0]
        log_likelihoods = of_targets - jax.nn.logsumexp(logits, axis=-1)
        return -jax.nn.logsumexp(log_priors + log_likelihoods, axis=-1)

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        log_priors, logits = self.components(hidden, embedding)
        return jax.nn.logsumexp(log_priors[..., None] + jax.nn.log_softmax(logits), axis=1)
