"""Mixtures of softmaxes of one hidden state, whose log-probabilities pass the rank of the features;
and of contexts, whose do not.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.base import Head
from lm.output.logit_stats import logit_stats
from lm.output.pointwise import LogitsHead


class MixtureHead(Head):
    """Mixture of softmaxes: log sum_k pi_k softmax(tanh(h U_k + c_k) W') (Yang et al. 1711.03953).

    Mixed in log space, log p_v = lse_k(log pi_k + z_kv - lse_v z_kv): no small constant inside a
    logarithm. With one component it is the softmax on tanh(h U + c).

    Attributes:
      mixtures: K, number of softmaxes; the paper uses 10 to 15.
      residual: contexts are h + tanh(h U_k + c_k) with U and c zero at first, where it is the
        softmax head, whatever K.
    """

    mixtures: int = 4
    residual: bool = False

    vocab_shardable = True

    @property
    def logits_per_token(self) -> int:
        """A token has K rows of logits."""
        return self.mixtures * self.vocab_size

    @nn.compact
    def components(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log priors [N, K] and logits [N, K, V]."""
        priors, contexts = priors_and_contexts(self, self.mixtures, hidden, self.residual)
        logits = self.project(contexts.reshape(-1, self.d_model), self.table(embedding))
        log_priors = jax.nn.log_softmax(priors.astype(logits.dtype), axis=-1)
        return log_priors, logits.reshape(-1, self.mixtures, self.vocab_size)

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N], without the log-probabilities of other tokens."""
        log_priors, logits = self.components(hidden, embedding)
        targets = jnp.repeat(jnp.asarray(targets), self.mixtures)
        stats = logit_stats(logits.reshape(-1, self.vocab_size), targets, axis=self.vocab_axis)
        nats = stats.cross_entropy.reshape(log_priors.shape)
        return -jax.nn.logsumexp(log_priors - nats, axis=-1)

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        log_priors, logits = self.components(hidden, embedding)
        return jax.nn.logsumexp(log_priors[..., None] + jax.nn.log_softmax(logits), axis=1)


class MixtureOfContextsHead(LogitsHead):
    """Contexts mixed before one softmax, z = (sum_k pi_k tanh(h U_k + c_k)) W' (1711.03953).

    The control for `mixture`: as many parameters, but log-probabilities of rank D + 1 at most.

    Attributes:
      mixtures: K, number of contexts.
      residual: as of `MixtureHead`.
    """

    mixtures: int = 4
    residual: bool = False

    vocab_shardable = True
    has_kernel = True

    @nn.compact
    def affine(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The mixed contexts [N, D], the table and the bias."""
        priors, contexts = priors_and_contexts(self, self.mixtures, hidden, self.residual)
        mixed = jnp.einsum("nk,nkd->nd", jax.nn.softmax(priors, axis=-1), contexts)
        return mixed, self.table(embedding), self.bias_vector()


def priors_and_contexts(
    head: Head, mixtures: int, hidden: jax.Array, residual: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Logits of the priors, [N, K], and contexts tanh(h U_k + c_k), [N, K, D], with h added where
    they are residual; makes the layers `prior` and `latent` in the compact method that calls it.
    """
    dense = {"dtype": head.dtype, "param_dtype": head.param_dtype}

    priors = nn.Dense(mixtures, use_bias=False, name="prior", **dense)(hidden)
    start = {"kernel_init": nn.initializers.zeros} if residual else {}
    latent = nn.Dense(mixtures * head.d_model, name="latent", **start, **dense)
    contexts = jnp.tanh(latent(hidden)).reshape(-1, mixtures, head.d_model)
    return priors, contexts + hidden[:, None] if residual else contexts
