"""Attention whose positions are split over the sequence axis of the mesh: every device computes its
own queries, over keys that travel around the ring or are gathered.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.attention.blockwise import Arrays
from lm.attention.chunking import plan_block
from lm.attention.mask import Mask
from lm.devices.sharding import SEQUENCE_AXIS, sequence_parts
from lm.softmax import WEIGHTINGS

_SPLIT = PartitionSpec(None, SEQUENCE_AXIS)


def is_ring(weighting: str, mixes_heads: bool = False) -> bool:
    """Whether keys and values travel around; else every device gathers those of all.

    They travel where the weights of a row can be merged from those of its parts (`mergeable`), and
    each head sums values by its own weights.
    """
    return WEIGHTINGS[weighting].mergeable and not mixes_heads


def describe_split(length: int, parts: int, ring: bool, query_chunk_size: int | None) -> str:
    """How rows of this length are computed by so many devices, as a run's log says it."""
    own = -(-length // parts)
    size = plan_block(own, own if ring else length, query_chunk_size).size
    keys = "keys passed around" if ring else "keys gathered from"
    return f"{own} queries on each device, {size} at a time, {keys} {parts} devices"


def splits(mask: Mask) -> bool:
    """Whether the mesh in use splits the queries of such a mask; decoding's are not."""
    return sequence_parts() > 1 and (mask.offset is None or isinstance(mask.offset, int))


def over_sequence(
    path: Callable[..., jax.Array],
    ring: bool,
    queries: Arrays,
    keys: Arrays,
    shared: Arrays,
    mask: Mask,
    rng: jax.Array | None,
) -> jax.Array:
    """`path(queries, keys, shared, mask, rng)` on every device of the sequence axis.

    Args:
      path: gives contexts [B, Q, H, K'] for a device's queries.
      ring: it has its part of the keys as well; else all keys.
      queries, keys: pytrees of arrays [B, Q, ...] and [B, S, ...], of any lengths.
      shared: a pytree, whole on every device.
      mask: of all queries and keys; that of a device has its queries and all keys.
      rng: each device draws with a key of its own.
    """
    parts = sequence_parts()
    length, seen = (jax.tree.leaves(x)[0].shape[1] for x in (queries, keys))
    extra, extra_keys = -length % parts, -seen % parts
    mask = _with_keys(mask.padded_queries(length), seen, extra_keys).padded_queries(length + extra)
    queries, keys = (
        jax.tree.map(lambda x, more=more: _pad_behind(x, more), tree)
        for tree, more in ((queries, extra), (keys, extra_keys))
    )
    offset, size = mask.offset or 0, (length + extra) // parts
    mask = dataclasses.replace(mask, offset=None)

    def on_one(queries, keys, shared, mask, rng):
        place = jax.lax.axis_index(SEQUENCE_AXIS)
        mask = dataclasses.replace(mask, offset=offset + place * size)
        rng = None if rng is None else jax.random.fold_in(rng, place)
        return path(queries, keys, shared, mask, rng)

    whole = PartitionSpec()
    specs = jax.tree.map(lambda _: whole, mask)
    of_queries = {n: _SPLIT for n in ("segments", "positions") if getattr(mask, n) is not None}
    specs = dataclasses.replace(specs, **of_queries)
    contexts = jax.shard_map(
        on_one,
        in_specs=(_SPLIT, _SPLIT if ring else whole, whole, specs, whole),
        out_specs=_SPLIT,
        axis_names={SEQUENCE_AXIS},
        check_vma=False,
    )(queries, keys, shared, mask, rng)
    return contexts[:, :length]


def _with_keys(mask: Mask, keys: int, extra: int) -> Mask:
    """The same mask for more keys, which nothing sees."""
    if not extra:
        return mask
    padding = jnp.ones((1, keys), bool) if mask.padding is None else mask.padding
    mask = dataclasses.replace(mask, padding=padding)
    names = ("key_segments", "padding", "prefix", "key_positions")
    arrays = {name: getattr(mask, name) for name in names}
    padded = {name: _pad_behind(x, extra) for name, x in arrays.items() if x is not None}
    return dataclasses.replace(mask, **padded)


def _pad_behind(x: jax.Array, extra: int) -> jax.Array:
    """Zeros behind, along axis 1."""
    return jnp.pad(x, [(0, extra if axis == 1 else 0) for axis in range(x.ndim)]) if extra else x
