"""Heads of sparse weightings, which give most tokens no probability, with the losses that fit them
and the metrics that stay finite (Martins, Marinho, Martins, Sparse Text Generation, 2020).
"""

import functools

import jax
import jax.numpy as jnp

from lm.output.base import take_targets
from lm.output.pointwise import LogitsHead
from lm.softmax import WEIGHTINGS


class EntmaxHead(LogitsHead):
    """Fenchel-Young loss of the alpha-entmax p of z = h W' + b (Peters et al. 1905.05702).

    loss = (p - e_y) . z + (1 - sum_v p_v^alpha) / (alpha (alpha - 1)), at least 0, with the
    gradient p - e_y in z. It is zero where z_y exceeds all others by 1 / (alpha - 1) or more.

    A token outside the support has no likelihood. `log_probs` says so, with -inf; the likelihood
    that tables compare is smoothed, (p_y + epsilon) / (1 + epsilon V) (Martins et al. 2020).

    Attributes:
      alpha: above 1, at most 2.
      epsilon: None means 0.01 / V, about 1 % shared equally by all tokens.
    """

    alpha: float = 1.5
    epsilon: float | None = None

    full_support = False

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token, [N]; see the class."""
        return fenchel_young(self.logits(hidden, embedding), targets, self.alpha)

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, -inf outside the support, where the gradient is 0."""
        p = entmax(self.logits(hidden, embedding), self.alpha)
        return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Minus the log of the smoothed p(target), [N]: the log of the epsilon-perplexity."""
        p = entmax(self.logits(hidden, embedding), self.alpha)
        epsilon = 0.01 / self.vocab_size if self.epsilon is None else self.epsilon
        return smoothed_nats(take_targets(p, targets), self.vocab_size, epsilon)

    def support_metrics(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Metrics that need no full support, [N] each."""
        p = entmax(self.logits(hidden, embedding), self.alpha)
        own = take_targets(p, targets)
        return {
            "sparsemax_score": sparsemax_score(own, jnp.sum(jnp.square(p), axis=-1)),
            "jensen_shannon": jensen_shannon(own),
        }


class SparsemaxHead(EntmaxHead):
    """The Fenchel-Young loss of sparsemax, p the simplex's nearest point to z (1602.02068)."""

    alpha: float = 2.0


def entmax(z: jax.Array, alpha: float) -> jax.Array:
    """The alpha-entmax of logits [N, V]."""
    name = {1.5: "entmax15", 2.0: "sparsemax"}.get(alpha)
    return WEIGHTINGS[name].apply(z) if name else WEIGHTINGS["entmax"].apply(z, alpha=alpha)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def fenchel_young(z: jax.Array, targets: jax.Array, alpha: float) -> jax.Array:
    """The loss [N] of logits [N, V] and targets [N]; see `EntmaxHead`."""
    return _forward(z, targets, alpha)[0]


def _forward(z, targets, alpha):
    p = entmax(z, alpha)
    power = p**2 if alpha == 2.0 else p * jnp.sqrt(p) if alpha == 1.5 else p**alpha
    entropy = (1.0 - jnp.sum(power, axis=-1)) / (alpha * (alpha - 1.0))
    return jnp.sum(p * (z - take_targets(z, targets)[:, None]), axis=-1) + entropy, (p, targets)


def _backward(alpha, saved, gradient):
    p, targets = saved
    is_target = jax.lax.broadcasted_iota(targets.dtype, p.shape, 1) == targets[:, None]
    return gradient[:, None] * (p - is_target), None


fenchel_young.defvjp(_forward, _backward)


def smoothed_nats(own: jax.Array, vocab_size: int, epsilon: float) -> jax.Array:
    """-log((p_y + epsilon) / (1 + epsilon V)) in nats; its mean's exponential is the
    epsilon-perplexity.

    Args:
      own: p_y, the truth's probability.
      vocab_size: V.
      epsilon: above 0; 0 gives the plain likelihood.
    """
    return jnp.log1p(epsilon * vocab_size) - jnp.log(own + epsilon)


def sparsemax_score(own: jax.Array, squares: jax.Array) -> jax.Array:
    """p_y + (1 - sum_v p_v^2) / 2, from 0 to 1; 1 for a certain and right prediction.

    Args:
      own: p_y.
      squares: sum_v p_v^2.
    """
    return own + (1.0 - squares) / 2.0


def jensen_shannon(own: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence of p and the truth's one-hot, in nats: 0 to log 2.

    It depends on p_y alone: with m = (1 + p_y) / 2 it is
    (1 - m) log 2 - m log m + p_y log(p_y) / 2, where 0 log 0 = 0.
    """
    middle = (1.0 + own) / 2.0
    own_term = jnp.where(own > 0, own * jnp.log(jnp.where(own > 0, own, 1.0)), 0.0)
    return (1.0 - middle) * jnp.log(2.0) - middle * jnp.log(middle) + own_term / 2.0
