"""How does decoding remember? By arrays in the collection "cache", one place for every position.

Positions are the axis before the last, behind the heads: so attention reads all of a head's keys as
they lie, where it would else turn the whole cache at every word. On a CPU rows and heads are one
axis too: XLA contracts them as one, and where they are stored as two it copies the whole cache at
every word, as it writes one place of it in both shapes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.devices.platform import platform


def remember(module: nn.Module, name: str, new: jax.Array, offset: Any, length: int) -> jax.Array:
    """Writes [B, Q, ..., K] into the cache of `module` at `offset` and returns all of it.

    Args:
      module: whose variable it is.
      name: of the variable.
      new: [B, Q, ..., K], of the positions from `offset` on.
      offset: where they stand.
      length: S, how many positions the cache holds.

    Returns:
      [B, S, ..., K]; places that were never written are 0.
    """
    new = jnp.moveaxis(new, 1, -2)
    inner = new.shape[1:-2]
    if rows_are_heads():
        new = new.reshape(-1, *new.shape[-2:])
    shape = (*new.shape[:-2], length, new.shape[-1])
    cache = module.variable("cache", name, jnp.zeros, shape, new.dtype)
    cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, new, offset, axis=new.ndim - 2)
    return remembered(module, name, *inner)


def remembered(module: nn.Module, name: str, *inner: int) -> jax.Array:
    """What the cache of `module` holds, [B, S, *inner, K]."""
    kept: Any = module.get_variable("cache", name)
    return jnp.moveaxis(kept.reshape(-1, *inner, *kept.shape[-2:]), -2, 1)


def take_rows(cache: Any, rows: jax.Array, size: int, axis: int) -> Any:
    """The cache of chosen rows of a batch.

    Args:
      cache: pytree of arrays [..., B or B x heads, ...].
      rows: [R], which, from 0 to B - 1.
      size: B.
      axis: of the rows; behind that of the layers where these are scanned.
    """

    def of(kept: jax.Array) -> jax.Array:
        before, after = kept.shape[:axis], kept.shape[axis + 1 :]
        chosen = jnp.take(kept.reshape(*before, size, -1, *after), rows, axis=axis)
        return chosen.reshape(*before, -1, *after)

    return jax.tree.map(of, cache)


def rows_are_heads() -> bool:
    """Whether the rows of a batch and their heads are one axis where a model decodes."""
    return platform() == "cpu"
