"""How do queries, keys and values become contexts? By scores, a weighting of
`lm.softmax.WEIGHTINGS`, and a weighted sum; whole at once, or a block of queries at a time.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.mask import Mask
from lm.softmax import WEIGHTINGS

# Above this many scores per head, `block=None` computes this many queries at a time.
_PLAIN_LIMIT = 1024 * 1024
_BLOCK = 128


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: Mask = Mask(),  # noqa: B008 (frozen)
    weighting: str = "softmax",
    learned: Mapping[str, jax.Array] | None = None,
    options: Mapping[str, Any] | None = None,
    slopes: jax.Array | None = None,
    rng: jax.Array | None = None,
    block: int | None = None,
) -> jax.Array:
    """Weighted mean of the values: weighting(q.k / sqrt(K)) v.

    Args:
      query: [B, Q, H, K].
      key, value: [B, S, G, K]; G divides H, and each group of H/G heads shares a key (2305.13245).
      mask: which keys each query sees.
      weighting: a name of `WEIGHTINGS`.
      learned: the weighting's own parameters, name -> [H].
      options: the weighting's fixed options (cap, temperature, ...).
      slopes: [H], ALiBi's slopes: score -= slope * |distance| (2108.12409).
      rng: a random key, for random weightings.
      block: queries computed at a time. None chooses by size; 0 forces the plain path; n > 0 needs
        memory linear in S, forward and backward, as each block is recomputed in the backward pass.

    Returns:
      [B, Q, H, K], in the dtype of `value`. A query that sees no key gets zeros.

    Raises:
      ValueError: where G does not divide H.
    """
    queries, heads, keys, groups = *query.shape[1:3], *key.shape[1:3]
    if heads % groups:
        raise ValueError(f"{groups} key groups do not divide {heads} heads")
    if block is None:
        block = _BLOCK if queries * keys > _PLAIN_LIMIT else 0

    def context(query: jax.Array, start: jax.Array | int) -> jax.Array:
        scores = _scores(query, key)
        if slopes is not None:
            distance = jnp.abs(mask.distance(start, query.shape[1], keys))
            scores -= slopes[:, None, None].astype(scores.dtype) * distance
        parameters = {name: p[:, None, None] for name, p in (learned or {}).items()}
        if rng is not None:
            parameters["key"] = jax.random.fold_in(rng, start)
        weights = WEIGHTINGS[weighting].apply(
            scores, mask.visible(start, query.shape[1], keys), **(options or {}), **parameters
        )
        return _weighted_sum(weights, value)

    if block == 0 or block >= queries:
        return context(query, 0)
    padded = jnp.pad(query, ((0, 0), (0, -queries % block), (0, 0), (0, 0)))
    blocks = padded.reshape(query.shape[0], -1, block, *query.shape[2:]).swapaxes(0, 1)
    mask = mask.padded_queries(padded.shape[1])
    starts = jnp.arange(blocks.shape[0]) * block
    contexts = jax.lax.map(jax.checkpoint(lambda args: context(*args)), (blocks, starts))
    return contexts.swapaxes(0, 1).reshape(padded.shape)[:, :queries]


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Scaled scores [B, H, Q, S] in float32 at least."""
    batch, queries, heads, size = query.shape
    groups = key.shape[2]
    grouped = (query * size**-0.5).reshape(batch, queries, groups, heads // groups, size)
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqgrk,bsgk->bgrqs", grouped, key, preferred_element_type=dtype)
    return scores.reshape(batch, heads, queries, -1)


def _weighted_sum(weights: jax.Array, value: jax.Array) -> jax.Array:
    """[B, H, Q, S] weights and [B, S, G, K] values to [B, Q, H, K]."""
    batch, heads, queries, keys = weights.shape
    groups, size = value.shape[2:]
    grouped = weights.astype(value.dtype).reshape(batch, groups, heads // groups, queries, keys)
    context = jnp.einsum("bgrqs,bsgk->bqgrk", grouped, value)
    return context.reshape(batch, queries, heads, size)
