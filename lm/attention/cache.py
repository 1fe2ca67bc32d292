"""How does decoding remember? By arrays in the collection "cache", one place for every position."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def remember(module: nn.Module, name: str, new: jax.Array, offset: Any, length: int) -> jax.Array:
    """Writes [B, Q, ...] into the cache of `module` at `offset` and returns all of it.

    Args:
      module: whose variable it is.
      name: of the variable.
      new: [B, Q, ...], of the positions from `offset` on.
      offset: where they stand.
      length: S, how many positions the cache holds.

    Returns:
      [B, S, ...]; places that were never written are 0.
    """
    shape = (new.shape[0], length, *new.shape[2:])
    cache = module.variable("cache", name, jnp.zeros, shape, new.dtype)
    cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, new, offset, axis=1)
    return cache.value
