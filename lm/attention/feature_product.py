"""Attention whose weights are products of features: keys and values are summed into a state, so
that the work grows with the length and not with its square.
"""

import functools

import jax
import jax.numpy as jnp

from lm.attention.attend import attend
from lm.attention.mask import Mask
from lm.devices.sharding import gather_positions

_CHUNK = 128


def feature_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    query_chunk_size: int | None = None,
    floor: float = 0.0,
) -> jax.Array:
    """sum_j w_ij v_j / sum_j w_ij over the visible keys, with w_ij = query_i . key_j.

    Causal sums run through chunks of positions, with a state [M, K] that is dropped where a
    document ends; sums over both sides are a run forth and a run back. Decoding with a cache,
    prefixes, and attention to a memory of several documents go over the weights instead.

    Args:
      query: [B, Q, H, M], features of the queries, such that no w is negative.
      key: [B, S, G, M], features of the keys.
      value: [B, S, G, K].
      mask: without a window; segments are contiguous runs.
      query_chunk_size: positions in a chunk; None: 128; 0: goes over the weights, the plain path.
      floor: a sum of weights below it counts as this; 0: only a sum of 0 is not divided by.

    Returns:
      [B, Q, H, K], in the dtype of `value`, computed in float32. Zeros where nothing is visible or
      every weight is 0.

    Raises:
      ValueError: where the mask has a window.
    """
    if mask.window is not None:
        raise ValueError("sums of features have no window; use a mechanism with scores")
    dtype = jnp.promote_types(value.dtype, jnp.float32)
    query, key, values = (x.astype(dtype) for x in (query, key, value))
    if query_chunk_size == 0 or not _sums(mask, query.shape[1] == key.shape[1]):
        weighting = functools.partial(_normalise, floor=floor)
        # `attend` divides scores by sqrt(M).
        query = query * query.shape[3] ** 0.5
        context = attend(
            query, key, values, mask=mask, weighting=weighting, query_chunk_size=query_chunk_size
        )
        return context.astype(value.dtype)

    if mask.padding is not None:
        key = jnp.where(mask.padding[:, :, None, None], key, 0.0)
    size, length, groups = key.shape[:3]
    query = query.reshape(size, query.shape[1], groups, -1, query.shape[3])
    query = query.transpose(0, 2, 3, 1, 4)
    # A column of ones sums the weights themselves.
    values = jnp.concatenate([values, jnp.ones((*values.shape[:3], 1), dtype)], axis=3)
    key, values = key.swapaxes(1, 2), values.swapaxes(1, 2)
    if not mask.causal and mask.segments is None:
        sums = jnp.einsum("bgrqm,bgmk->bgrqk", query, _state(key, values))
    else:
        # A run passes all positions in turn: every device computes it whole.
        query = gather_positions(query, 3)
        key, values = gather_positions(key, 2), gather_positions(values, 2)
        segments = jnp.zeros((size, length), int) if mask.segments is None else mask.segments
        segments, chunk = segments[:, None], min(query_chunk_size or _CHUNK, length)
        sums = _run(query, key, values, segments, chunk)
        if not mask.causal:
            key, values, segments = (jnp.flip(x, 2) for x in (key, values, segments))
            later = _run(jnp.flip(query, 3), key, values, segments, chunk, beyond=1)
            sums += jnp.flip(later, 3)
    context = _divide(sums[..., :-1], sums[..., -1:], floor).transpose(0, 3, 1, 2, 4)
    return context.reshape(*context.shape[:2], -1, context.shape[4]).astype(value.dtype)


def _sums(mask: Mask, square: bool) -> bool:
    """Whether running sums give what the mask says."""
    if any(x is not None for x in (mask.offset, mask.key_segments, mask.prefix)):
        return False
    return square or not (mask.causal or mask.segments is not None)


def _run(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    chunk: int,
    beyond: int = 0,
) -> jax.Array:
    """Sums of w v over the keys at least `beyond` places earlier, in the query's segment."""
    length = key.shape[2]
    extra = -length % chunk
    order = jnp.tril(jnp.ones((chunk, chunk), bool), -beyond)

    def chunks(x: jax.Array, axis: int, mode: str = "constant") -> jax.Array:
        x = jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)], mode=mode)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)

    def one(carry, arrays):
        state, document = carry
        query, key, value, segments = arrays
        weights = jnp.einsum("bgrqm,bgsm->bgrqs", query, key)
        seen = order & (segments[:, :, :, None] == segments[:, :, None, :])
        weights = jnp.where(seen[:, :, None], weights, 0.0)
        within = jnp.einsum("bgrqs,bgsk->bgrqk", weights, value)
        before = jnp.einsum("bgrqm,bgmk->bgrqk", query, state)
        same = (segments == document)[:, :, None, :, None]
        last = segments[:, :, -1:]
        state = jnp.where((document == last)[..., None], state, 0.0)
        state += _state(jnp.where((segments == last)[..., None], key, 0.0), value)
        return (state, last), within + jnp.where(same, before, 0.0)

    state = jnp.zeros((*key.shape[:2], key.shape[3], value.shape[3]), key.dtype)
    arrays = (chunks(query, 3), chunks(key, 2), chunks(value, 2), chunks(segments, 2, "edge"))
    _, sums = jax.lax.scan(one, (state, segments[:, :, :1]), arrays)
    sums = jnp.moveaxis(sums, 0, 3)
    return sums.reshape(*sums.shape[:3], -1, sums.shape[5])[:, :, :, :length]


def _state(key: jax.Array, value: jax.Array) -> jax.Array:
    """[B, G, S, M] and [B, G, S, K] to their sum of outer products [B, G, M, K]."""
    return jnp.einsum("bgsm,bgsk->bgmk", key, value)


def _normalise(scores: jax.Array, where: jax.Array | None = None, floor: float = 0.0) -> jax.Array:
    """Weights [..., S] that are visible, divided by their sum."""
    weights = scores if where is None else jnp.where(where, scores, 0.0)
    return _divide(weights, jnp.sum(weights, axis=-1, keepdims=True), floor)


def _divide(x: jax.Array, total: jax.Array, floor: float) -> jax.Array:
    return x / jnp.where(total > floor, total, floor or 1.0)
