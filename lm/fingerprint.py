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
    names = sorted(arrays)
    sums = jax.jit(lambda arrays: [_mixed_sum(x) for x in arrays])([arrays[n] for n in names])
    lines = [
        f"{name} {arrays[name].shape} {arrays[name].dtype} {int(total)}"
        for name, total in zip(names, sums, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _mixed_sum(x: jax.Array) -> jax.Array:
    """The sum of every element's bits after the finalising steps of MurmurHash3, modulo 2^32."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).reshape(-1)
    bits ^= jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(0x9E3779B9)
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(bits ^ (bits >> 16), dtype=jnp.uint32)
