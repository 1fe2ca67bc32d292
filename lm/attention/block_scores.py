"""Computes the scores of a block of queries over a block of keys."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.mask import Mask

# Of so few queries, as in decoding, the keys are a product's left factor: as the right one they
# would be copied, on a CPU, so that what is summed comes first.
FEW_QUERIES = 8


def heads_first(
    queries: tuple[jax.Array, jax.Array | None],
    keys: tuple[jax.Array, jax.Array, jax.Array | None],
    shared: tuple[Any, Any, Any],
) -> tuple[Any, Any, Any]:
    """Heads before positions, so that blocks of queries and prefixes of keys are slices.

    Args:
      queries: query [B, Q, H, K] and gate [B, Q, H].
      keys: key [B, S, G, K], value [B, S, G, K'] and gate [B, S, H].
      shared: learned parameters [H] by name, and what is passed on as it is.

    Returns:
      The same as [B, G, H/G, Q, K], divided by sqrt(K), and [B, H, Q, 1]; [B, G, S, K],
      [B, G, S, K'] and [B, H, S, 1]; [H, 1, 1].
    """
    (query, query_gate), (key, value, key_gate), (learned, *others) = queries, keys, shared
    query = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[3])
    query = (query * query.shape[4] ** -0.5).transpose(0, 2, 3, 1, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    if query_gate is not None and key_gate is not None:
        query_gate, key_gate = (x.swapaxes(1, 2)[..., None] for x in (query_gate, key_gate))
    per_head = {name: p[:, None, None] for name, p in learned.items()}
    return (query, query_gate), (key, value, key_gate), (per_head, *others)


def positions_first(contexts: jax.Array) -> jax.Array:
    """[B, G, H/G, Q, K'] to [B, Q, H, K']."""
    contexts = contexts.transpose(0, 3, 1, 2, 4)
    return contexts.reshape(*contexts.shape[:2], -1, contexts.shape[4])


def block_scores(
    queries: tuple[jax.Array, jax.Array | None],
    keys: tuple[jax.Array, jax.Array, jax.Array | None],
    shared: tuple[Any, Any, Any],
    mask: Mask,
    start: jax.Array | int,
    first_key: jax.Array | int,
) -> jax.Array:
    """Scores [B, H, n, S], in float32 at least, of queries from `start` and keys from `first_key`.

    What `heads_first` gives, or blocks of it, with what distances, gates and mixing do to scores.
    """
    (query, query_gate), (key, _, key_gate), (_, position_bias, mixing) = queries, keys, shared
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    count = query.shape[3]  # of a model that is exported, it may be left to the caller
    if isinstance(count, int) and count <= FEW_QUERIES:
        scores = jnp.einsum("bgsk,bgrqk->bgsrq", key, query, preferred_element_type=dtype)
        scores = scores.transpose(0, 1, 3, 4, 2)
    else:
        scores = jnp.einsum("bgrqk,bgsk->bgrqs", query, key, preferred_element_type=dtype)
    scores = scores.reshape(scores.shape[0], -1, *scores.shape[3:])
    if position_bias is not None:
        block = (start, query.shape[3], first_key, key.shape[2])
        scores += position_bias(mask.relative_positions(*block)).astype(dtype)
    if query_gate is not None and key_gate is not None:
        scores += query_gate - key_gate.swapaxes(-1, -2)
    if mixing is not None:
        scores = jnp.einsum("bgqs,gh->bhqs", scores, mixing[0])
    return scores
