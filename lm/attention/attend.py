"""How do queries, keys and values become contexts? By scores, a weighting of
`lm.softmax.WEIGHTINGS`, and a weighted sum; whole at once, or a block of queries at a time.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.mask import Mask
from lm.materialise import materialise
from lm.softmax import WEIGHTINGS

# Above this many scores per head, `block=None` computes this many queries at a time.
_PLAIN_LIMIT = 1024 * 1024
_BLOCK = 128
# Below it, a causal triangle is computed in this many parts, each over the keys that it sees: 5/8
# of the square's work.
_PARTS = 4


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

    # Heads before positions, so that blocks of queries and prefixes of keys are slices.
    query = (
        query.reshape(query.shape[0], queries, groups, -1, query.shape[3]) * query.shape[3] ** -0.5
    )
    query = materialise(query.transpose(0, 2, 3, 1, 4))
    key, value = materialise((key.swapaxes(1, 2), value.swapaxes(1, 2)))

    def context(
        query: jax.Array, start: jax.Array | int, key: jax.Array = key, value: jax.Array = value
    ) -> jax.Array:
        """[B, G, H/G, n, K] for the n queries from `start` on, over a prefix of the keys."""
        length, seen = query.shape[3], key.shape[2]
        scores = _scores(query, key)
        if slopes is not None:
            distance = jnp.abs(mask.distance(start, length, seen))
            scores -= slopes[:, None, None].astype(scores.dtype) * distance
        parameters = {name: p[:, None, None] for name, p in (learned or {}).items()}
        if rng is not None:
            parameters["key"] = jax.random.fold_in(rng, start)
        weights = WEIGHTINGS[weighting].apply(
            scores, mask.visible(start, length, seen), **(options or {}), **parameters
        )
        weights = weights.astype(value.dtype).reshape(*query.shape[:4], seen)
        return jnp.einsum("bgrqs,bgsk->bgrqk", weights, value)

    if block is None and queries * keys > _PLAIN_LIMIT:
        block = _BLOCK
    if block is None and _is_triangular(mask, queries, keys):
        contexts = _triangle(context, query, key, value)
    elif not block or block >= queries:
        contexts = context(query, 0)
    else:
        mask = mask.padded_queries(queries + -queries % block)
        contexts = _scan(context, query, block)
    return contexts.transpose(0, 3, 1, 2, 4).reshape(-1, queries, heads, value.shape[3])


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Scaled queries [B, G, H/G, n, K] and keys [B, G, S, K] to scores [B, H, n, S], float32."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bgrqk,bgsk->bgrqs", query, key, preferred_element_type=dtype)
    return scores.reshape(query.shape[0], -1, *scores.shape[3:])


def _triangle(context: Any, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Parts of the queries, each over the keys up to its end; prefixes of prefixes, so that the
    gradient of a key is summed over short arrays first.
    """
    length = query.shape[3]
    ends = [length * part // _PARTS for part in range(_PARTS + 1)]
    parts = []
    for start, end in reversed(list(itertools.pairwise(ends))):
        key, value = key[:, :, :end], value[:, :, :end]
        parts.append(materialise(context(query[:, :, :, start:end], start, key, value)))
    return jnp.concatenate(parts[::-1], axis=3)


def _scan(context: Any, query: jax.Array, block: int) -> jax.Array:
    """Blocks of queries one after the other, each recomputed in the backward pass."""
    length = query.shape[3]
    padded = jnp.pad(query, ((0, 0),) * 3 + ((0, -length % block), (0, 0)))
    starts = jnp.arange(0, padded.shape[3], block)

    def one(start: jax.Array) -> jax.Array:
        return context(jax.lax.dynamic_slice_in_dim(padded, start, block, axis=3), start)

    contexts = jnp.moveaxis(jax.lax.map(jax.checkpoint(one), starts), 0, 3)
    return contexts.reshape(*padded.shape)[:, :, :, :length]


def _is_triangular(mask: Mask, queries: int, keys: int) -> bool:
    """Whether later queries alone see later keys, and parts of the triangle pay (on a CPU)."""
    square = queries == keys and mask.offset is None
    return mask.causal and square and queries >= 32 and jax.default_backend() == "cpu"
