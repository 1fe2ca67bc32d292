"""In what type are parameters summed and averaged? In float32 at least, whatever their own; what
comes of it is rounded to their type at random, so that no step is too small to count.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.devices.sharding import path_name


def in_float32(tree: Any) -> Any:
    """The same numbers in float32; those in a wider type as they are."""
    return jax.tree.map(lambda x: x.astype(_wide(x)), tree)


def wide_zeros(params: Any) -> Any:
    """Zeros of the parameters' shapes, where a sum of their gradients begins."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), params)


def plus(total: Any, new: Any, share: float = 1.0) -> Any:
    """The total and a share of what is new, of the total's types."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype) * share, total, new)


def moving_average(average: Any, params: Any, decay: float) -> Any:
    """Decay * average + (1 - decay) * params, in the average's types; the second product too, of
    which bfloat16 would make another share.
    """
    return optax.incremental_update(in_float32(params), average, 1.0 - decay)


def float32_moments(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that keeps its moments, and makes its updates, in float32.

    A moving average m + (1 - b) (x - m) in bfloat16, which has 8 bits, stays where it is as soon as
    its step is below 1/512 of it.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return tx.update(in_float32(updates), state, in_float32(params))

    return optax.GradientTransformation(lambda params: tx.init(in_float32(params)), update)


def apply_updates(params: Any, updates: Any, key: jax.Array) -> Any:
    """Parameters plus updates, in the parameters' types: bfloat16 by stochastic rounding.

    Such a sum is rounded to one of its two neighbours with the probability of its nearness to it,
    so that it is right on average: to the nearest, steps below 1/512 of a parameter would be lost
    (Zamirai et al., 2010.06192). What bfloat16 holds exactly stays. Each parameter has draws of its
    own, by its path.
    """

    def one(path: Any, p: jax.Array, u: jax.Array) -> jax.Array:
        if p.dtype != jnp.bfloat16:
            return (p + u).astype(p.dtype)
        own = jax.random.fold_in(key, path_seed(path))
        return stochastic_round(p.astype(jnp.float32) + u, own)

    return jax.tree_util.tree_map_with_path(one, params, updates)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, whose mean over keys is x; what is not finite stays so."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32: a number below 2^16 carries into it by chance.
    bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), kept, x).astype(jnp.bfloat16)


def path_seed(path: Any) -> int:
    """A number of a parameter's path: it draws what no other parameter's presence moves."""
    return zlib.crc32(path_name(path).encode())


def _wide(x: Any) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
