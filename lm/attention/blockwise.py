"""Computes attention in blocks of queries, each over the keys that it can see, with gradients that
are summed in place.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Arrays = Any  # a pytree of arrays

# context(queries, keys, shared, fixed, start, first_key) -> [..., n, K]
Context = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Part:
    """`blocks` blocks of `size` queries from `start` on, each over `keys` keys.

    Attributes:
      start: the first query.
      size: queries at a time.
      blocks: how many times. One keeps what its gradient needs; several run one after the other
        and are computed again in the backward pass, in memory linear in the number of keys.
      keys: how many keys a block reads.
      back: a block reads keys from this many before its first query on; None: from the first key.
    """

    start: int
    size: int
    blocks: int
    keys: int
    back: int | None = None

    def first_key(self, start: jax.Array | int, keys: int) -> jax.Array | int:
        """The first key that the block from query `start` on reads, of `keys` in all."""
        if self.back is None:
            return 0
        return jnp.clip(start - self.back, 0, keys - self.keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_blockwise(
    context: Context,
    parts: tuple[Part, ...],
    queries: Arrays,
    keys: Arrays,
    shared: Arrays,
    fixed: Arrays,
) -> jax.Array:
    """`context` of every block of queries, put together along the axis before the last.

    Args:
      context: `context(queries, keys, shared, fixed, start, first_key)`, the contexts of a block.
      parts: which blocks, in order; together all queries.
      queries, keys: pytrees of arrays [..., Q, _] and [..., S, _]; differentiated.
      shared: pytree for all blocks; differentiated.
      fixed: pytree for all blocks; not differentiated.
    """
    return _forward(context, parts, queries, keys, shared, fixed)[0]


def _forward(context, parts, queries, keys, shared, fixed):
    operands, contexts, saved = (queries, keys, shared, fixed), [], []
    for part in parts:
        y, gradient = _part_forward(context, part, *operands)
        # One part after the other: else the compiler holds the scores of several at once.
        operands, y = jax.lax.optimization_barrier((operands, y))
        contexts.append(y)
        saved.append(gradient)
    return jnp.concatenate(contexts, axis=-2), (queries, keys, shared, fixed, saved)


def _part_forward(context, part, queries, keys, shared, fixed):
    if part.blocks == 1:
        slices = _slices(part, queries, keys, part.start)
        return jax.vjp(_block(context, part, keys, fixed, part.start), *slices, shared)

    def one(start):
        slices = _slices(part, queries, keys, start)
        return _block(context, part, keys, fixed, start)(*slices, shared)

    return _joined(jax.lax.map(one, _starts(part))), None


def _backward(context, parts, saved, context_grads):
    queries, keys, shared, fixed, gradients = saved
    # The longest first: the others are added into its prefix.
    query_grads = []
    sums = zeros_like_sums((keys, shared))
    for part, gradient in zip(reversed(parts), reversed(gradients), strict=True):
        part_grads = _take(context_grads, part.start, part.size * part.blocks)
        operands = (queries, keys, shared, fixed)
        query_grad, sums = part_backward(context, part, gradient, operands, part_grads, sums)
        sums, query_grad, queries = jax.lax.optimization_barrier((sums, query_grad, queries))
        query_grads.append(query_grad)
    query_grads = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-2), *query_grads[::-1])
    key_grads, shared_grads = jax.tree.map(lambda s, x: s.astype(x.dtype), sums, (keys, shared))
    return query_grads, key_grads, shared_grads, None


def part_backward(context, part, gradient, operands, part_grads, sums):
    """Gradients of a part's queries, and `sums` with those of keys and of what is shared.

    Args:
      context: as for `attend_blockwise`; it may also give several such arrays.
      part: which queries.
      gradient: of its one block, kept from the forward pass; None: computed here.
      operands: queries, keys, shared and fixed, of `attend_blockwise`.
      part_grads: of what `context` gives for the part.
      sums: `zeros_like_sums` of keys and shared, or what other parts made of them.
    """
    queries, keys, shared, fixed = operands

    def add(sums, block_grads, gradient, start):
        query_grad, of_key, shared_grads = gradient(block_grads)
        first = part.first_key(start, _length(keys))
        key_grads = jax.tree.map(lambda s, x: _add_at(s, x, first), sums[0], of_key)
        return (key_grads, jax.tree.map(_plus, sums[1], shared_grads)), query_grad

    def gradient_of(start):
        slices = _slices(part, queries, keys, start)
        return jax.vjp(_block(context, part, keys, fixed, start), *slices, shared)[1]

    if part.blocks == 1:
        sums, query_grad = add(sums, part_grads, gradient or gradient_of(part.start), part.start)
        return query_grad, sums

    def one(sums, start):
        block_grads = _take(part_grads, start - part.start, part.size)
        return add(sums, block_grads, gradient_of(start), start)

    sums, query_grad = jax.lax.scan(one, sums, _starts(part))
    return _joined(query_grad), sums


attend_blockwise.defvjp(_forward, _backward)


def map_blocks(function: Callable[..., Any], part: Part, queries: Arrays) -> Arrays:
    """`function(start, block of queries)` of every block of a part, put together along the axis
    before the last.
    """
    if part.blocks == 1:
        return function(part.start, _take(queries, part.start, part.size))
    found = jax.lax.map(
        lambda start: function(start, _take(queries, start, part.size)), _starts(part)
    )
    return _joined(found)


def pad_queries(x: jax.Array, length: int) -> jax.Array:
    """Zeros behind, along the axis before the last."""
    if x.shape[-2] == length:
        return x
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, length - x.shape[-2]), (0, 0)))


def zeros_like_sums(tree: Arrays) -> Arrays:
    """Zeros of the same shapes, in float32 at least."""
    return jax.tree.map(_zeros, tree)


def _block(context, part, keys, fixed, start):
    """The contexts of one block, as a function of what is differentiated."""
    first = part.first_key(start, _length(keys))
    return lambda queries, keys, shared: context(queries, keys, shared, fixed, start, first)


def _starts(part: Part) -> jax.Array:
    return part.start + part.size * jnp.arange(part.blocks)


def _slices(part, queries, keys, start):
    first = part.first_key(start, _length(keys))
    return _take(queries, start, part.size), _take(keys, first, part.keys)


def _joined(tree: Arrays) -> Arrays:
    """[blocks, ..., n, K] to [..., blocks n, K]."""
    moved = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -3), tree)
    return jax.tree.map(lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1]), moved)


def _length(tree: Arrays) -> int:
    return jax.tree.leaves(tree)[0].shape[-2]


def _take(tree: Arrays, start: jax.Array | int, length: int) -> Arrays:
    def take(x):
        if isinstance(start, int):
            return jax.lax.slice_in_dim(x, start, start + length, axis=x.ndim - 2)
        return jax.lax.dynamic_slice_in_dim(x, start, length, axis=x.ndim - 2)

    return jax.tree.map(take, tree)


def _zeros(x: jax.Array) -> jax.Array:
    return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))


def _plus(total: jax.Array, x: jax.Array) -> jax.Array:
    return total + x.astype(total.dtype)


def _add_at(total: jax.Array, x: jax.Array, first: jax.Array | int) -> jax.Array:
    """Adds `x` into the sums from `first` on along the axis before the last."""
    before = _take(total, first, x.shape[-2])
    axis = total.ndim - 2
    return jax.lax.dynamic_update_slice_in_dim(total, _plus(before, x), first, axis=axis)
