"""Are these the same parameters? Digits that a tree of arrays has on any mesh, and no other has."""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp


def fingerprint(arrays: Mapping[str, jax.Array]) -> str:
    """Twelve hexadecimal digits for named arrays: names, shapes, types and every bit.

    Each element's bits are mixed with its place and summed as integers, whose sum no order of
    summation changes; so the digits do not depend on how arrays are divided over devices.
    """
    sums = {name: _mixed_sum(array) for name, array in arrays.items()}
    lines = [
        f"{name} {arrays[name].shape} {arrays[name].dtype} {int(sums[name])}"
        for name in sorted(arrays)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


@jax.jit
def _mixed_sum(x: jax.Array) -> jax.Array:
    """The sum of every element's bits after the finalising steps of MurmurHash3, modulo 2^32.

    Elements are numbered where they lie: an array that is divided over devices is never gathered.
    """
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    x = x.astype(unsigned) if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    bits, place, stride = x.astype(jnp.uint32), jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        number = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place += number * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    bits ^= place * jnp.uint32(0x9E3779B9)
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(bits ^ (bits >> 16), dtype=jnp.uint32)
