"""Score-based attention: scores, a weighting of `lm.softmax.WEIGHTINGS`, and a weighted sum; all
queries at once or in blocks.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.blockwise import attend_blockwise
from lm.attention.chunking import plan_blocks
from lm.attention.fused import fused_attention, has_kernel
from lm.attention.mask import Mask
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
        `fused_attention`), and else chooses by size and device (see `plan_blocks`); 0 forces the
        plain path; n > 0 needs memory linear in S, forward and backward, as each block is
        recomputed in the backward pass.

    Returns:
      [B, Q, H, K'], in the dtype of `value`. A query that sees no key gets zeros.

    Raises:
      ValueError: where G does not divide H.
    """
    length, heads, seen, groups = *query.shape[1:3], *key.shape[1:3]
    if heads % groups:
        raise ValueError(f"{groups} key groups do not divide {heads} heads")

    plain = weighting == "softmax" and not (learned or options or position_bias or gates or mixing)
    if query_chunk_size is None and plain and has_kernel(query, key, value, mask):
        return fused_attention(query, key, value, mask)

    # Heads before positions, so that blocks of queries and prefixes of keys are slices.
    query = query.reshape(query.shape[0], length, groups, -1, query.shape[3])
    query = (query * query.shape[4] ** -0.5).transpose(0, 2, 3, 1, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    query_gate, key_gate = (x.swapaxes(1, 2)[..., None] for x in gates) if gates else (None, None)
    queries, keys = (query, query_gate), (key, value, key_gate)
    per_head = {name: p[:, None, None] for name, p in (learned or {}).items()}
    shared = (per_head, position_bias, mixing)
    apply = WEIGHTINGS[weighting].apply if isinstance(weighting, str) else weighting

    parts = plan_blocks(length, seen, mask, query_chunk_size)
    apply = functools.partial(apply, **(options or {}))
    context = functools.partial(_context, _apart(apply) if parts else apply)
    if not parts:
        contexts = context(queries, keys, shared, (mask, rng), 0, 0)
    else:
        padded = parts[-1].start + parts[-1].size * parts[-1].blocks
        queries = jax.tree.map(lambda x: _pad(x, padded), queries)
        fixed = (mask.padded_queries(padded), rng)
        contexts: jax.Array = attend_blockwise(context, parts, queries, keys, shared, fixed)
        contexts = contexts[..., :length, :]
    return contexts.transpose(0, 3, 1, 2, 4).reshape(-1, length, heads, value.shape[3])


def _context(apply, queries, keys, shared, fixed, start, first_key) -> jax.Array:
    """Queries [B, G, H/G, n, K] over keys [B, G, S, K] to contexts [B, G, H/G, n, K']."""
    (query, query_gate), (key, value, key_gate) = queries, keys
    (learned, position_bias, mixing), (mask, rng) = shared, fixed
    block = (start, query.shape[3], first_key, key.shape[2])

    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bgrqk,bgsk->bgrqs", query, key, preferred_element_type=dtype)
    scores = scores.reshape(scores.shape[0], -1, *scores.shape[3:])
    if position_bias is not None:
        scores += position_bias(mask.relative_positions(*block)).astype(dtype)
    if query_gate is not None:
        scores += query_gate - key_gate.swapaxes(-1, -2)
    if mixing is not None:
        scores = jnp.einsum("bgqs,gh->bhqs", scores, mixing[0])
    if rng is not None:
        learned = learned | {"key": jax.random.fold_in(rng, start)}
    weights = apply(scores, mask.visible(*block), **learned)
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


def _pad(x: jax.Array, length: int) -> jax.Array:
    """Zeros behind, along the axis before the last."""
    if x.shape[-2] == length:
        return x
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, length - x.shape[-2]), (0, 0)))
