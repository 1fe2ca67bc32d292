"""Which word comes next? A draw from the model's distribution, or from its likely part."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the next word is chosen; see `sample`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it is a draw from the model's own distribution."""
        return self == Choice()


def sample(
    log_probs: jax.Array,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """Draws one token from log-probabilities [V]. The likeliest is always kept.

    Args:
      log_probs: [V].
      key: of the draw.
      temperature: divides the log-probabilities; 0 takes the likeliest token.
      top_k: keeps the k likeliest tokens; 0: all.
      top_p: keeps the likeliest tokens whose probabilities first sum to p (1904.09751); 1: all.
      min_p: keeps tokens at least this share as likely as the likeliest (2407.01082).
    """
    if temperature == 0.0:
        return jnp.argmax(log_probs)
    log_probs = jax.nn.log_softmax(log_probs / temperature)
    if (top_k, top_p, min_p) == (0, 1.0, 0.0):
        return jax.random.categorical(key, log_probs)
    order = jnp.sort(log_probs, descending=True)
    floor = -jnp.inf
    if top_k:
        floor = jnp.maximum(floor, order[min(top_k, order.size) - 1])
    if top_p < 1.0:
        before = jnp.cumsum(jnp.exp(order)) - jnp.exp(order)
        floor = jnp.maximum(floor, order[jnp.maximum(jnp.sum(before < top_p), 1) - 1])
    if min_p > 0.0:
        floor = jnp.maximum(floor, order[0] + jnp.log(min_p))
    floor = jnp.minimum(floor, order[0])
    return jax.random.categorical(key, jnp.where(log_probs >= floor, log_probs, -jnp.inf))
