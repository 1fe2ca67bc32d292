"""Ring attention: every device of the sequence axis keeps its queries, and the blocks of keys and
values travel around; what weights need to know of their whole row is merged block by block.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.block_scores import block_scores, heads_first, positions_first
from lm.attention.blockwise import (
    Arrays,
    Part,
    map_blocks,
    pad_queries,
    part_backward,
    zeros_like_sums,
)
from lm.attention.chunking import plan_block
from lm.attention.mask import Mask
from lm.devices.sharding import SEQUENCE_AXIS
from lm.softmax.weighting import Weighting, divide_by_sum, visible_scores


@dataclasses.dataclass(frozen=True, eq=False)
class Ring:
    """How one device computes its part (2310.01889, for every weighting that is `mergeable`).

    With x the exponents of a row and m their running maximum, the sums of e^(x-m) v and of e^(x-m)
    are carried from block to block, and divided at the end; pointwise weightings carry the sum of
    w v alone. The backward pass goes around once more, with the row's m and sum known, and the
    gradients of keys and values travel with them. Temporaries are those of one block of keys.

    Attributes:
      weighting: its record.
      options: its fixed options.
      devices: on the ring.
      part: in which blocks a device computes its queries.
    """

    weighting: Weighting
    options: Mapping[str, Any]
    devices: int
    part: Part

    def scores(self, queries, keys, shared, fixed, start) -> tuple[jax.Array, Any, dict[str, Any]]:
        """Of a block: scores, which of them are visible, and the weighting's options."""
        mask, first_key = fixed
        query, gate, length, _ = queries
        scores = block_scores((query, gate), keys, shared, mask, start, first_key)
        visible = mask.visible(start, query.shape[3], first_key, keys[0].shape[2])
        options = {**self.options, **shared[0]}
        if self.weighting.pointwise:
            return scores, visible, options | {"length": length}
        options.pop("sink", None)
        return scores, visible, options

    def exponents(self, queries, keys, shared, fixed, start) -> tuple[jax.Array, jax.Array]:
        """Of a block: scores and exponents, minus infinity where nothing is visible."""
        scores, visible, options = self.scores(queries, keys, shared, fixed, start)
        z = visible_scores(scores, visible, masked=0.0)
        assert self.weighting.exponents is not None
        x = self.weighting.exponents(z, queries[2], **options)
        return z, visible_scores(x, visible)

    def sums(self, queries, keys, shared, fixed, start, first_key=0) -> Any:
        """Of a block, whose rows have a known maximum: sum w v, and sum e^(x-m) or None."""
        del first_key
        if self.weighting.pointwise:
            scores, visible, options = self.scores(queries, keys, shared, fixed, start)
            weights = self.weighting.apply(scores, visible, **options)
            return _times(weights, keys[1], queries[0]), None
        z, x = self.exponents(queries, keys, shared, fixed, start)
        return self._sums(z, x, jax.lax.stop_gradient(queries[3]), keys[1], queries[0])

    def _sums(self, z, x, top, value, query) -> tuple[jax.Array, jax.Array]:
        exponentials = jnp.exp(x - top)
        weights = exponentials
        if self.weighting.factor is not None:
            weights = self.weighting.factor(z) * exponentials
        return _times(weights, value, query), jnp.sum(exponentials, axis=-1, keepdims=True)

    def add(self, carry, queries, keys, shared, fixed) -> Any:
        """The carried sums with those of a block of keys."""

        def block(start, arrays):
            queries, (sums, total, top) = arrays
            if self.weighting.pointwise:
                return sums + self.sums(queries, keys, shared, fixed, start)[0], None, None
            z, x = self.exponents(queries, keys, shared, fixed, start)
            new_top = jnp.maximum(top, jnp.max(x, axis=-1, keepdims=True))
            finite = jnp.where(new_top == -jnp.inf, 0.0, new_top)
            more, more_total = self._sums(z, x, finite, keys[1], queries[0])
            kept = jnp.exp(top - finite)
            return sums * _grouped(kept, sums) + more, total * kept + more_total, new_top

        return map_blocks(block, self.part, (queries, carry))

    def start(self, queries, keys, shared) -> Any:
        """The carried sums before any key: those of a sink, where there is one."""
        query, value = queries[0], keys[1]
        dtype = jnp.promote_types(value.dtype, jnp.float32)
        sums = jnp.zeros((*query.shape[:4], value.shape[3]), dtype)
        if self.weighting.pointwise:
            return sums, None, None
        rows = jnp.zeros(
            (query.shape[0], query.shape[1] * query.shape[2], query.shape[3], 1), dtype
        )
        if not self.weighting.sink:
            return sums, rows, jnp.full_like(rows, -jnp.inf)
        return sums, rows + 1.0, rows + self.sink(shared)

    def sink(self, shared) -> jax.Array | float:
        """The exponent of the sum's one more term, which broadcasts to [B, H, Q, 1]."""
        return {**self.options, **shared[0]}.get("sink", 0.0)

    def row_lengths(self, mask: Mask, queries: int, keys: int) -> jax.Array:
        """The n of every row, [B or 1, 1, Q, 1], at least 1; `keys` are those of one device."""

        def block(start, _):
            def visible(first_key) -> Any:
                return mask.visible(start, self.part.size, first_key, keys)

            def add(total, first_key):
                seen = jnp.sum(visible(first_key), axis=-1, keepdims=True, dtype=jnp.float32)
                return total + seen, None

            shape = jax.eval_shape(visible, 0)
            if shape is None:
                return jnp.full((1, 1, self.part.size, 1), keys * self.devices, jnp.float32)
            zeros = jnp.zeros((shape.shape[0], 1, self.part.size, 1), jnp.float32)
            return jax.lax.scan(add, zeros, keys * jnp.arange(self.devices))[0]

        return jnp.maximum(map_blocks(block, self.part, jnp.zeros((queries, 1))), 1.0)


def ring_attend(
    weighting: Weighting,
    options: Mapping[str, Any],
    query_chunk_size: int | None,
    queries: tuple[jax.Array, jax.Array | None],
    keys: tuple[jax.Array, jax.Array, jax.Array | None],
    shared: tuple[Any, Any, None],
    mask: Mask,
    rng: None = None,
) -> jax.Array:
    """One device's contexts [B, Q, H, K'], within a `jax.shard_map` over the sequence axis.

    Args:
      weighting: a `mergeable` one.
      options: its fixed options.
      query_chunk_size: queries computed at a time; None: by size.
      queries: query [B, Q, H, K] and gate [B, Q, H], this device's.
      keys: key [B, S, G, K], value [B, S, G, K'] and gate [B, S, H], this device's.
      shared: learned parameters [H] by name, a position bias, and no mixing.
      mask: of this device's queries among the keys of all devices.
      rng: none.
    """
    del rng
    dtype, length = keys[1].dtype, queries[0].shape[1]
    (query, gate), keys, shared = heads_first(queries, keys, shared)
    part = plan_block(length, keys[0].shape[2], query_chunk_size)
    ring = Ring(weighting, options, jax.lax.axis_size(SEQUENCE_AXIS), part)
    padded = part.size * part.blocks
    query, gate = jax.tree.map(lambda x: pad_queries(x, padded), (query, gate))
    mask = mask.padded_queries(padded)
    lengths = None
    if weighting.needs_length:
        lengths = ring.row_lengths(mask, padded, keys[0].shape[2])
    contexts: jax.Array = _contexts(ring, (query, gate, lengths), keys, shared, mask)
    return positions_first(contexts[..., :length, :]).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contexts(ring: Ring, queries: Arrays, keys: Arrays, shared: Arrays, mask: Mask) -> jax.Array:
    """[B, G, H/G, Q, K'] in float32 at least."""
    return _forward(ring, queries, keys, shared, mask)[0]


def _forward(ring, queries, keys, shared, mask):
    def add(carry, step):
        sums, keys = carry
        following = _passed_on(keys, ring.devices)
        fixed = (mask, _first_key(step, ring.devices, keys))
        return (ring.add(sums, (*queries, None), keys, shared, fixed), following), None

    carry = (ring.start(queries, keys, shared), keys)
    carry, _ = jax.lax.scan(add, carry, jnp.arange(ring.devices - 1))
    fixed = (mask, _first_key(ring.devices - 1, ring.devices, keys))
    sums, total, top = ring.add(carry[0], (*queries, None), carry[1], shared, fixed)
    if total is None:
        return sums, (queries, keys, shared, mask, None)
    contexts = divide_by_sum(sums, _grouped(total, sums))
    top = jnp.where(top == -jnp.inf, 0.0, top)
    return contexts, (queries, keys, shared, mask, (contexts, total, top))


def _backward(ring, saved, context_grads):
    queries, keys, shared, mask, rows = saved
    sums, top = (zeros_like_sums(keys), zeros_like_sums(shared)), None
    if rows is None:
        grads = (context_grads, None)
    else:
        contexts, total, top = rows
        of_sums = divide_by_sum(context_grads, _grouped(total, contexts))
        of_total = -jnp.sum(of_sums * contexts, axis=-1, keepdims=True).reshape(total.shape)
        grads = (of_sums, of_total)
        if ring.weighting.sink:
            _, of_sink = jax.vjp(lambda shared: jnp.exp(ring.sink(shared) - top), shared)
            sums = (sums[0], jax.tree.map(jnp.add, sums[1], of_sink(of_total)[0]))
    queries = (*queries, top)

    def add(query_grads, keys, sums, step):
        fixed = (mask, _first_key(step, ring.devices, keys))
        more, sums = part_backward(
            ring.sums, ring.part, None, (queries, keys, shared, fixed), grads, sums
        )
        key_grads = _passed_on(sums[0], ring.devices)
        return jax.tree.map(jnp.add, query_grads, more), (key_grads, sums[1])

    def one(carry, step):
        query_grads, keys, sums = carry
        following = _passed_on(keys, ring.devices)
        query_grads, sums = add(query_grads, keys, sums, step)
        return (query_grads, following, sums), None

    carry = (zeros_like_sums(queries), keys, sums)
    (query_grads, last, sums), _ = jax.lax.scan(one, carry, jnp.arange(ring.devices - 1))
    query_grads, sums = add(query_grads, last, sums, ring.devices - 1)
    found = jax.tree.map(
        lambda s, x: s.astype(x.dtype), (query_grads[:3], *sums), (queries[:3], keys, shared)
    )
    return *found, None


_contexts.defvjp(_forward, _backward)


def _passed_on(tree: Arrays, devices: int) -> Arrays:
    """Every device's arrays, at the device after it."""
    pairs = [(i, (i + 1) % devices) for i in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, SEQUENCE_AXIS, pairs), tree)


def _first_key(step: jax.Array | int, devices: int, keys: Arrays) -> jax.Array:
    """The first of the keys that a device has after so many steps, among those of all."""
    return (jax.lax.axis_index(SEQUENCE_AXIS) - step) % devices * keys[0].shape[2]


def _times(weights: jax.Array, value: jax.Array, query: jax.Array) -> jax.Array:
    """Weights [B, H, n, S] times values [B, G, S, K'], [B, G, H/G, n, K'] in float32 at least."""
    dtype = jnp.promote_types(value.dtype, jnp.float32)
    weights = weights.astype(value.dtype).reshape(*query.shape[:4], -1)
    return jnp.einsum("bgrqs,bgsk->bgrqk", weights, value, preferred_element_type=dtype)


def _grouped(rows: jax.Array, sums: jax.Array) -> jax.Array:
    """[B, H, Q, 1] to [B, G, H/G, Q, 1]."""
    return rows.reshape(*sums.shape[:4], 1)
