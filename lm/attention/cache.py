"""How does decoding remember? By arrays in the collection "cache", one place for every position.

Positions are the axis before the last, behind the heads: so attention reads all of a head's keys as
they lie, where it would else turn the whole cache at every word.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


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
    shape = (*new.shape[:-2], length, new.shape[-1])
    cache = module.variable("cache", name, jnp.zeros, shape, new.dtype)
    cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, new, offset, axis=new.ndim - 2)
    return remembered(module, name)


def remembered(module: nn.Module, name: str) -> jax.Array:
    """What the cache of `module` holds, [B, S, ..., K]."""
    kept: Any = module.get_variable("cache", name)
    return jnp.moveaxis(kept, -2, 1)
