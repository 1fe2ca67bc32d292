"""Pointwise weightings: sigmoid and rectifiers of each score by itself, over the row's length.

A place's weight depends on no other score of its row, only on the number n of visible places; rows
do not sum to one. `length` is n where the scores are a part of the row's.
"""

import jax
import jax.numpy as jnp

from lm.softmax.weighting import row_length, visible_scores


def sigmoid(
    scores: jax.Array,
    where: jax.Array | None = None,
    *,
    bias: float | jax.Array | None = None,
    length: jax.Array | None = None,
) -> jax.Array:
    """Gives 1 / (1 + e^-(s+b)); b = None means -log n (Ramapuram et al. 2409.04431).

    With b = -log n a row of equal small scores sums to about one.
    """
    z = visible_scores(scores, where)
    shift = -jnp.log(row_length(scores, where, length)) if bias is None else bias
    return jax.nn.sigmoid(z + shift).astype(scores.dtype)


def relu(
    scores: jax.Array, where: jax.Array | None = None, *, length: jax.Array | None = None
) -> jax.Array:
    """Gives max(s, 0) / n (Wortsman et al. 2309.08586)."""
    z = jax.nn.relu(visible_scores(scores, where))
    return (z / row_length(scores, where, length)).astype(scores.dtype)


def relu_squared(
    scores: jax.Array, where: jax.Array | None = None, *, length: jax.Array | None = None
) -> jax.Array:
    """Gives max(s, 0)^2 / n (Hua et al. 2202.10447)."""
    z = jax.nn.relu(visible_scores(scores, where))
    return (z * z / row_length(scores, where, length)).astype(scores.dtype)
