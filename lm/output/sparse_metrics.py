"""How good is a prediction that may give the truth no probability? Three measures that stay finite
(Martins, Marinho, Martins, Sparse Text Generation, 2020), here for one token each.
"""

import jax
import jax.numpy as jnp


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
