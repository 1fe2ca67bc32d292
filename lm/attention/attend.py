"""Score-based attention: scores, a weighting of `lm.softmax.WEIGHTINGS`, and a weighted sum; all
queries at once or in blocks, on one device or with the positions split over several.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.block_scores import block_scores, heads_first, positions_first
from lm.attention.blockwise import attend_blockwise, pad_queries
from lm.attention.chunking import plan_blocks
from lm.attention.kernels import attend_by, choose
from lm.attention.mask import Mask
from lm.attention.ring import ring_attend
from lm.attention.sequence import is_ring, over_sequence, splits
from lm.devices.cpu import fusion_barrier
from lm.devices.platform import platform
from lm.softmax import WEIGHTINGS


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: Mask = Mask(),  # noqa: B008 (frozen)
    weighting: str | Callable[..., jax.Array] = "softmax",
    learned: Mapping[str, jax.Array] | None = None,
    options: Mapping[str, Any] | None = None,
    position_bias: Callable[[jax.Array], jax.Array] | None = None,
    gates: tuple[jax.Array, jax.Array] | None = None,
    mixing: tuple[jax.Array, jax.Array] | None = None,
    rng: jax.Array | None = None,
    query_chunk_size: int | None = None,
) -> jax.Array:
    """Weighted mean of the values: weighting(q.k / sqrt(K)) v.

    Args:
      query: [B, Q, H, K].
      key: [B, S, G, K]; G divides H, and each group of H/G heads shares a key (2305.13245).
      value: [B, S, G, K'].
      mask: which keys each query sees.
      weighting: a name of `WEIGHTINGS`, or a function such as their `apply`: scores [B, H, n, S]
        in float32, where, and the parameters below to weights.
      learned: the weighting's own parameters, name -> [H].
      options: the weighting's fixed options (cap, temperature, ...).
      position_bias: a pytree that maps distances [B or 1, 1, n, S] to [B or 1, H, n, S], added
        to the scores: `AlibiBias` or `RelativeBias` of `lm.attention.positions`.
      gates: [B, Q, H] and [B, S, H]: score += the query's minus the key's.
      mixing: [H, H] twice, from one head's to another's: of the scores, then of the weights.
      rng: a random key, for random weightings.
      query_chunk_size: queries computed at a time. None takes a kernel where there is one (see
        `lm.attention.kernels`), and else chooses by size and device (see `plan_blocks`); 0 forces
        the plain path; n > 0 needs memory linear in S, forward and backward, as each block is
        recomputed in the backward pass. Unless it is 0, a mesh in use that splits positions has
        every device compute its own queries (see `lm.attention.sequence`).

    Returns:
      [B, Q, H, K'], in the dtype of `value`. A query that sees no key gets zeros.

    Raises:
      ValueError: where G does not divide H.
    """
    heads, groups = query.shape[2], key.shape[2]
    if heads % groups:
        raise ValueError(f"{groups} key groups do not divide {heads} heads")

    query_gate, key_gate = gates or (None, None)
    queries, keys = (query, query_gate), (key, value, key_gate)
    shared = (dict(learned or {}), position_bias, mixing)
    apply = WEIGHTINGS[weighting].apply if isinstance(weighting, str) else weighting
    apply = functools.partial(apply, **(options or {}))
    if query_chunk_size != 0 and splits(mask):
        path, ring = functools.partial(_attend, apply, query_chunk_size), False
        if isinstance(weighting, str) and is_ring(weighting, mixing is not None):
            own = (WEIGHTINGS[weighting], options or {}, query_chunk_size)
            path, ring = functools.partial(ring_attend, *own), True
        return over_sequence(path, ring, queries, keys, shared, mask, rng)
    if query_chunk_size is None and isinstance(weighting, str):
        alone = not (position_bias or gates or mixing)
        kernel = choose(query, key, value, mask, weighting, alone, options or {}).kernel
        if kernel:
            return attend_by(
                kernel, query, key, value, mask, weighting, options or {}, learned or {}
            )
    return _attend(apply, query_chunk_size, queries, keys, shared, mask, rng)


def _attend(apply, query_chunk_size, queries, keys, shared, mask, rng) -> jax.Array:
    """[B, Q, H, K'], all queries at once or in blocks."""
    length, seen = queries[0].shape[1], keys[0].shape[1]
    queries, keys, shared = heads_first(queries, keys, shared)
    if mask.offset is None:  # keys that are cached are not copied
        keys = fusion_barrier(keys)
    parts = plan_blocks(length, seen, mask, query_chunk_size)
    context = functools.partial(_context, _apart(apply) if parts else apply)
    if not parts:
        return positions_first(context(queries, keys, shared, (mask, rng), 0, 0))
    padded = parts[-1].start + parts[-1].size * parts[-1].blocks
    queries = jax.tree.map(lambda x: pad_queries(x, padded), queries)
    fixed = (mask.padded_queries(padded), rng)
    contexts: jax.Array = attend_blockwise(context, parts, queries, keys, shared, fixed)
    return positions_first(contexts[..., :length, :])


def _context(apply, queries, keys, shared, fixed, start, first_key) -> jax.Array:
    """Queries [B, G, H/G, n, K] over keys [B, G, S, K] to contexts [B, G, H/G, n, K']."""
    query, value = queries[0], keys[1]
    (learned, _, mixing), (mask, rng) = shared, fixed
    scores = block_scores(queries, keys, shared, mask, start, first_key)
    if rng is not None:
        learned = learned | {"key": jax.random.fold_in(rng, start)}
    visible = mask.visible(start, query.shape[3], first_key, value.shape[2])
    weights = apply(scores, visible, **learned)
    if mixing is not None:
        weights = jnp.einsum("bgqs,gh->bhqs", weights, mixing[1])
    weights = weights.astype(value.dtype).reshape(*query.shape[:4], -1)
    return jnp.einsum("bgrqs,bgsk->bgrqk", weights, value, preferred_element_type=value.dtype)


def _apart(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same weighting, kept out of the products around it, on a TPU.

    Its compiler takes up to twice as long where a weighting becomes part of a product
    (experiments/compile_times.py); the scores and weights of a block fit in a core's memory.
    """
    if platform() != "tpu":
        return apply
    barrier = jax.lax.optimization_barrier
    return lambda scores, where, **learned: barrier(apply(barrier(scores), where, **learned))
