"""Prefix language modelling: the beginning of each document is given, and the rest predicted."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lm.data.objectives.base import Objective, row_keys
from lm.data.objectives.causal import causal
from lm.model.batch import Batch


class Prefix(Objective):
    """Prefix language modelling by a decoder (T5, 1910.10683, section 3.2.1).

    Of each document of n tokens in the row, the first 1 to n, drawn uniformly, are its prefix: all
    its positions see them, also those before. What follows is predicted from left to right. Nats
    are per predicted token; late tokens, which have more to go by, are predicted more often than
    early ones, so that they do not compare with those of `causal`.
    """

    def __call__(self, rows: Mapping[str, jax.Array], key: jax.Array) -> Batch:
        """See `Objective`: [B, L], with weight one where the next token is after the prefix."""
        batch = causal(rows)
        keys = row_keys(key, rows["tokens"])
        prefix = jax.vmap(_prefix)(keys, batch.segments, batch.positions)
        # The last token of a prefix already predicts what follows it.
        following = jnp.pad(prefix[:, 1:], ((0, 0), (0, 1)))
        last = jnp.pad(batch.segments[:, 1:] != batch.segments[:, :-1], ((0, 0), (0, 1)))
        weights = jnp.where(following & ~last, 0.0, batch.weights)
        inputs = self.opened(batch.inputs)
        return dataclasses.replace(batch, inputs=inputs, prefix=prefix, weights=weights)


def _prefix(key: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
    """Which positions of one row [L] are in the prefix of their document."""
    length = len(segments)
    sizes = jnp.zeros(length + 1, jnp.int32).at[segments].add(1)
    shares = jax.random.uniform(key, (length + 1,))
    given = 1 + jnp.floor(shares * sizes).astype(jnp.int32)
    return (segments > 0) & (positions < given[segments])
