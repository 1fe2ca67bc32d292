"""Stick-breaking attention: from the nearest key on, each takes its share of the weight left."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.attend import attend
from lm.attention.base import LayerContext, Mechanism
from lm.attention.mask import Mask
from lm.softmax.weighting import promote, visible_scores


class StickBreakingAttention(Mechanism):
    """weight_ij = beta_ij * product over j < k < i of (1 - beta_ik), beta = sigmoid(q.k / sqrt(K)).

    From the query's predecessor backwards, each key takes its share beta of the stick that is left
    (2410.17980). A query does not see itself, so the first token of a document gets zeros. Weights
    sum to at most one, and prefer what is near without any positions.
    """

    owns_weights = True
    causal_only = True
    position_embeddings = ("rotary",)

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`.

        Raises:
          ValueError: where the mask is not causal.
        """
        if not mask.causal:
            raise ValueError("stick_breaking is defined for causal attention only")
        # A query that stands one place earlier sees all keys but itself.
        earlier = dataclasses.replace(mask, offset=(0 if mask.offset is None else mask.offset) - 1)
        return attend(
            query,
            key,
            value,
            mask=earlier,
            weighting=break_stick,
            query_chunk_size=self.query_chunk_size,
        )


def break_stick(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Weights of keys that break a stick from the last to the first, [..., S] -> [..., S].

    log weight_j = log sigmoid(z_j) + sum over visible k > j of log(1 - sigmoid(z_k)). Masked keys
    break nothing off and get 0; a row without visible keys is zeros, with zero gradient.
    """
    z = promote(scores)
    left = visible_scores(jax.nn.log_sigmoid(-z), where, masked=0.0)
    # Shifted, not subtracted: what a large score breaks off must not come back as a rounding error.
    later = jnp.pad(left[..., 1:], [(0, 0)] * (z.ndim - 1) + [(0, 1)])
    rest = jnp.flip(jnp.cumsum(jnp.flip(later, -1), axis=-1), -1)
    weights = visible_scores(jnp.exp(jax.nn.log_sigmoid(z) + rest), where, masked=0.0)
    return weights.astype(scores.dtype)
