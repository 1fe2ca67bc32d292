"""Attention by the TPU kernels of this package, forward and backward, in memory linear in the
length.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.kernels.backward import gradients
from lm.attention.kernels.call import Operands, Setup
from lm.attention.kernels.families import Exponential, Family, Pointwise, Terms
from lm.attention.kernels.forward import forward
from lm.attention.kernels.threshold import Threshold
from lm.attention.kernels.tiles import Tiles, bounds, padded_segments
from lm.attention.kernels.top_k import TopK
from lm.attention.kernels.whole_rows import WholeRows, whole_row_forward, whole_row_queries
from lm.attention.mask import Mask
from lm.devices.tpu_core import LANES, core_memory
from lm.softmax import WEIGHTINGS
from lm.softmax.weighting import Weighting

# Of tiles, unless rows are shorter; larger ones are a tenth faster, waste more at the edge of a
# triangle, and want more of a core's memory.
_SIZE, _LONG, _SIZE_OF_LONG, _MEMORY_OF_LONG = 512, 8192, 1024, 64 * 2**20


def find_family(weighting: Weighting) -> type[Family] | None:
    """What the kernels know a weighting as; None where they do not."""
    if weighting.entmax_alpha is not None:
        return Threshold
    if weighting.top_k:
        return TopK
    if weighting.pointwise:
        return Pointwise
    if weighting.terms is not None:
        return Terms
    return None if weighting.exponents is None else Exponential


def kernel_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    weighting: Weighting,
    options: Mapping[str, Any],
    learned: Mapping[str, jax.Array],
    size: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Weighted mean of the values, [B, Q, H, K'].

    Args:
      query: [B, Q, H, K].
      key, value: [B, S, G, K] and [B, S, G, K']; G divides H.
      mask: without offset and prefix.
      weighting: one with a family (`find_family`).
      options: fixed.
      learned: by name, [H].
      size: queries and keys of a tile, a multiple of 128; None: by length.
      interpret: on any device, slowly.
    """
    length, keys, heads = query.shape[1], key.shape[1], query.shape[2]
    of, alpha_of = find_family(weighting), weighting.entmax_alpha
    if alpha_of is not None and not learned and alpha_of(**options) == 1.0:
        weighting, options, of = WEIGHTINGS["softmax"], {}, Exponential
    assert of is not None
    family = of(weighting, options, tuple(learned))
    tiles = Tiles(
        length,
        keys,
        *tile_sizes(of, length, keys, size),
        mask.causal,
        mask.window,
        mask.segments is not None or mask.padding is not None,
    )
    query = query * query.shape[3] ** -0.5
    query, key, value = (
        _padded(x.swapaxes(1, 2), to)
        for x, to in (
            (query, tiles.query_blocks * tiles.query_size),
            (key, tiles.key_blocks * tiles.key_size),
            (value, tiles.key_blocks * tiles.key_size),
        )
    )
    batch, _, whole, _ = query.shape
    shape = (batch, heads, whole)
    per_row = [jnp.broadcast_to(p[None, :, None], shape) for p in learned.values()]
    if weighting.needs_length:
        per_row.insert(0, jnp.broadcast_to(_row_lengths(mask, tiles), shape))
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    rows = jnp.stack(per_row or [jnp.zeros(shape)], axis=2).astype(dtype)
    segments = padded_segments(mask, tiles)
    contexts: jax.Array = _attention(
        Setup(family, tiles, interpret), query, key, value, rows, segments
    )
    return contexts[:, :, :length].swapaxes(1, 2)


def tile_sizes(family: type[Family], queries: int, keys: int, size: int | None) -> tuple[int, int]:
    """How many queries and keys a tile has."""
    whole_rows = issubclass(family, WholeRows)
    if size is None:
        long = keys >= _LONG and core_memory() >= _MEMORY_OF_LONG and not whole_rows
        size = _SIZE_OF_LONG if long else _SIZE
    of_queries, of_keys = (min(size, _whole_lanes(length)) for length in (queries, keys))
    return whole_row_queries(keys, of_queries) if whole_rows else of_queries, of_keys


def _row_lengths(mask: Mask, tiles: Tiles) -> jax.Array:
    """The n of every row, [B or 1, 1, Q'], at least 1."""
    if tiles.segmented:
        visible = mask.visible(0, tiles.queries, 0, tiles.keys)
        assert visible is not None
        found = jnp.maximum(jnp.sum(visible, axis=-1), 1)
        found = jnp.broadcast_to(found, (*found.shape[:2], tiles.queries))
    else:  # known without a count of the square
        found = jnp.asarray(tiles.row_lengths())[None, None]
    more = tiles.query_blocks * tiles.query_size - tiles.queries
    return jnp.pad(found, ((0, 0), (0, 0), (0, more)), constant_values=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(setup: Setup, query, key, value, rows, segments) -> jax.Array:
    """[B, H, Q', K'], of arrays that fill whole tiles."""
    return _forward(setup, query, key, value, rows, segments)[0]


def _forward(setup, query, key, value, rows, segments):
    batch = query.shape[0]
    run = whole_row_forward if isinstance(setup.family, WholeRows) else forward
    tags = _for_rows(_as_tags(segments), batch)
    operands = Operands(query, key, value.swapaxes(2, 3), rows, None, tags)
    found = run(setup, operands, bounds(_for_rows(setup.tiles.needed(segments), batch)))
    contexts = found.contexts.swapaxes(2, 3)
    means = contexts if found.means is None else found.means.swapaxes(2, 3)
    return contexts, (query, key, value, rows, segments, means, found.saved, found.support)


def _backward(setup, arrays, grads):
    query, key, value, rows, segments, means, saved, support = arrays
    family, batch = setup.family, query.shape[0]
    delta = jnp.sum(grads.astype(saved.dtype) * means.astype(saved.dtype), axis=3)[:, :, None]
    known = [rows] * bool(family.row_names) + [saved] * bool(family.saved) + [delta]
    tags = _for_rows(_as_tags(segments), batch)
    if support is not None:
        setup, support = _widened(setup, support)
    known = jnp.concatenate(known, axis=2)
    operands = Operands(query, key, value, known, grads, tags, support)
    found = gradients(setup, operands, _for_rows(setup.tiles.needed(segments), batch))
    row_grads = jnp.zeros_like(rows)
    if family.names:
        row_grads = row_grads.at[:, :, -len(family.names) :].set(found.options)
        if "sink" in family.names:
            place = family.row_names.index("sink")
            of_sink = -jnp.exp(rows[:, :, place] - saved[:, :, 0]) * delta[:, :, 0]
            row_grads = row_grads.at[:, :, place].set(of_sink)
    return found.query.swapaxes(2, 3), found.key, found.value, row_grads, None


_attention.defvjp(_forward, _backward)


def _widened(setup: Setup, support: jax.Array) -> tuple[Setup, jax.Array]:
    """With as many queries as keys in a tile, where a threshold left fewer, and their `support`."""
    tiles = setup.tiles
    blocks, size = tiles.query_blocks, tiles.query_size
    while 2 * size <= tiles.key_size and blocks % 2 == 0:
        blocks, size = blocks // 2, 2 * size
    support = support.reshape(*support.shape[:2], blocks, -1, support.shape[3]).max(3)
    return dataclasses.replace(setup, tiles=dataclasses.replace(tiles, query_size=size)), support


def _as_tags(segments):
    """Segments of queries along lanes, of keys along sublanes."""
    return None if segments is None else (segments[0][:, None, :], segments[1][:, :, None])


def _for_rows(arrays, batch: int):
    """Arrays [B or 1, ...] for every row of the batch."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), arrays)


def _whole_lanes(length: int) -> int:
    return -(-length // LANES) * LANES


def _padded(x: jax.Array, length: int) -> jax.Array:
    """Zeros behind, along axis 2."""
    if x.shape[2] == length:
        return x
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))
