"""Holds the keys and values of decoding, in the collection "cache", one place for every position.

Positions are the axis before the last, behind the heads: so attention reads all keys of a head as
they lie in memory, where it would else transpose the whole cache at every token.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def update_cache(
    module: nn.Module, name: str, new: jax.Array, offset: jax.Array | int | None, length: int
) -> jax.Array:
    """Writes [B, Q, ..., K] into the cache of `module` at `offset` and returns all of it.

    A cache that is not mutable may hold more positions than S, of which the first S are read.

    Args:
      module: whose variable it is.
      name: of the variable.
      new: [B, Q, ..., K], of the positions from `offset` on.
      offset: position of the first; None: 0.
      length: S, how many positions the cache holds, or are read.

    Returns:
      [B, S, ..., K]; positions that were never written are 0.
    """
    new = jnp.moveaxis(new, 1, -2)
    shape = (*new.shape[:-2], length, new.shape[-1])
    cache = module.variable("cache", name, jnp.zeros, shape, new.dtype)
    start = 0 if offset is None else offset
    past = cache.value[..., :length, :]
    whole = jax.lax.dynamic_update_slice_in_dim(past, new, start, axis=new.ndim - 2)
    if module.is_mutable_collection("cache"):
        cache.value = whole
    else:
        module.put_variable("written", name, new)
    return jnp.moveaxis(whole, -2, 1)


def read_cache(module: nn.Module, name: str) -> jax.Array:
    """What the cache of `module` holds, [B, S, ..., K]."""
    return jnp.moveaxis(jnp.asarray(module.get_variable("cache", name)), -2, 1)
