"""Computes checksums of trees of arrays, which are the same on any mesh, and checks by them that
the parameters that a run reads from elsewhere are still those that it began with.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from lm.checkpoints.run_files import read_run_json
from lm.data.files import write_json
from lm.devices.hosts import from_main, is_main
from lm.errors import UserError


def checksum(arrays: Mapping[str, jax.Array]) -> str:
    """Twelve hexadecimal digits for named arrays: names, shapes, types and every bit.

    Each element's bits are mixed with its index and summed as integers, whose sum no order of
    summation changes; so the digits do not depend on how arrays are divided over devices.
    """
    sums = _mixed_sums(dict(arrays))
    lines = [
        f"{name} {arrays[name].shape} {arrays[name].dtype} {int(sums[name])}"
        for name in sorted(arrays)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


@jax.jit
def _mixed_sums(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The sum of each array, by one program: of many small ones that communicate, several
    processes of CPUs may run two in different orders, and wait for each other.
    """
    return {name: _mixed_sum(array) for name, array in arrays.items()}


def _mixed_sum(x: jax.Array) -> jax.Array:
    """The sum of every element's bits after MurmurHash3's finalising steps, modulo 2^32."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    x = x.astype(unsigned) if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    bits, index, stride = x.astype(jnp.uint32), jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        number = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        index += number * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    bits ^= index * jnp.uint32(0x9E3779B9)
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(bits ^ (bits >> 16), dtype=jnp.uint32)


def record_source(file: epath.Path, source: str, arrays: Mapping[str, jax.Array]) -> None:
    """Writes where named arrays came from, and their checksum, as a run begins."""
    found = checksum(arrays)
    if is_main():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"source": source, "checksum": found})


def check_source(file: epath.Path, source: str, arrays: Mapping[str, jax.Array]) -> None:
    """Raises UserError where these are not the arrays that were recorded, or nothing was."""
    recorded = from_main(lambda: _recorded_source(file, source))
    if (found := checksum(arrays)) != recorded["checksum"]:
        raise UserError(
            f"{file.parent} was trained on {recorded['source']} (checksum {recorded['checksum']}), "
            f"which has changed: {source} has checksum {found}; restore that {file.stem}"
        )


def _recorded_source(file: epath.Path, source: str) -> dict[str, Any]:
    if not file.exists():
        raise UserError(
            f"{file.parent} has no {file.name}, by which to tell whether {source} is still the "
            "same; restore that file, or train again in another --workdir"
        )
    return read_run_json(file, "source", "checksum")
