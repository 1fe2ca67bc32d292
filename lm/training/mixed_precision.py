"""Keeps sums and averages of bfloat16 parameters in float32, and rounds updated parameters at
random, so that no update is too small to count.
"""

import zlib
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from lm.devices.sharding import path_name
from lm.training.train_state import Params

T = TypeVar("T")


def in_float32(tree: T) -> T:
    """The same numbers in float32; those of a wider type stay."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def accumulate(total: T, new: T, weight: float = 1.0) -> T:
    """Total + weight * new, of the types of the total."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype) * weight, total, new)


def update_ema(ema_params: Params, params: Params, decay: float) -> Params:
    """Decay * average + (1 - decay) * params, in the average's types; the second product too, of
    which bfloat16 would make another share.
    """
    return optax.incremental_update(in_float32(params), ema_params, 1.0 - decay)


def with_float32_state(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps the state of `tx`, and makes its updates, in float32.

    A moving average m + (1 - b) (x - m) in bfloat16, which has 8 bits, stays where it is as soon as
    its step is below 1/512 of it.
    """

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return tx.update(in_float32(updates), state, in_float32(params))

    return optax.GradientTransformation(lambda params: tx.init(in_float32(params)), update)


def apply_updates(params: Params, updates: Params, key: jax.Array) -> Params:
    """Parameters plus updates, in the parameters' types: bfloat16 by stochastic rounding.

    Such a sum is rounded to one of its two neighbours with the probability of its nearness to it,
    so that it is right on average: to the nearest, steps below 1/512 of a parameter would be lost
    (Zamirai et al., 2010.06192). What bfloat16 holds exactly stays. Each parameter has draws of its
    own, by its path.
    """

    def apply(path: jax.tree_util.KeyPath, p: jax.Array, u: jax.Array) -> jax.Array:
        if p.dtype != jnp.bfloat16:
            return (p + u).astype(p.dtype)
        own = jax.random.fold_in(key, path_seed(path))
        return stochastic_round(p.astype(jnp.float32) + u, own)

    return jax.tree_util.tree_map_with_path(apply, params, updates)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, whose mean over keys is x; what is not finite stays so."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32: a number below 2^16 carries into it by chance.
    bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), kept, x).astype(jnp.bfloat16)


def path_seed(path: jax.tree_util.KeyPath) -> int:
    """A number of a parameter's path: its draws do not depend on which other parameters exist."""
    return zlib.crc32(path_name(path).encode())
