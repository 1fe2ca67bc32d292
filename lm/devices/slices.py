"""Slices of TPUs, hosts of GPUs and CPUs by their names, and descriptions of their devices, for
which programs can be compiled where none of them is.
"""

import contextlib
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from lm.devices.accelerators import Accelerator, accelerator_of
from lm.devices.gpu_targets import GPU_TARGETS
from lm.errors import UserError, nearest

_EXAMPLES = "v5e-16, v6e-8, v5p-32, v4-8, tpu7x-8, h100-8, a100-8 or cpu-8"


class Slice(NamedTuple):
    """Devices that a program may be compiled for.

    Attributes:
      name: as it was asked for, such as "v5e-16".
      devices: as JAX counts them; of a TPU or a GPU only described.
      chips: how many chips they are.
      accelerator: what is known of each; None of CPUs.
    """

    name: str
    devices: Sequence[Any]
    chips: int
    accelerator: Accelerator | None


class _Generation(NamedTuple):
    """How Cloud TPU names the slices of a version.

    Attributes:
      topology: what libtpu calls it.
      counted: how many units of a slice's name a chip is: 2 where TensorCores are counted.
      dimensions: of the torus.
      options: of `get_topology_desc`.
    """

    topology: str
    counted: int
    dimensions: int
    options: Mapping[str, Any] = {}


# A chip of v4 is one device where its two cores work as one, as Cloud TPU has them.
_GENERATIONS = {
    "v4": _Generation("v4", 2, 3, {"chip_config_name": "megacore"}),
    "v5e": _Generation("v5e", 1, 2),
    "v5litepod": _Generation("v5e", 1, 2),
    "v5p": _Generation("v5p", 2, 3),
    "v6e": _Generation("v6e", 1, 2),
    "tpu7x": _Generation("tpu7x", 2, 3),
}
_MOST_CHIPS = {2: 256, 3: 4096}
_MOST_GPUS = 8  # of a host

# What libtpu asks the metadata server of a TPU's host, which a laptop has not.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def open_slice(name: str) -> Slice:
    """The slice of a name: "v5e-16", "v5p-128" (of 64 chips, as Cloud TPU counts TensorCores),
    "h100-8" (8 GPUs of a host), "cpu-8".

    Devices of TPUs and GPUs are described by their compilers, and none is used; CPUs are this
    process's, which makes so many of them unless JAX has started.

    Raises:
      UserError: there is no such slice, or its compiler is not installed.
    """
    kind, _, number = name.rpartition("-")
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"--on={name} names no slice; use for example {_EXAMPLES}")
    if kind in _GENERATIONS:
        return _tpu_slice(name, _GENERATIONS[kind], int(number))
    if kind in GPU_TARGETS:
        return _gpu_host(name, kind, int(number))
    if kind == "cpu":
        return Slice(name, _cpus(int(number)), int(number), None)
    known = [*_GENERATIONS, *GPU_TARGETS, "cpu"]
    raise UserError(f"--on={name}: {kind!r} is not one of {', '.join(known)}{nearest(kind, known)}")


def one_chip(slice_: Slice) -> Slice:
    """The slice of one chip of the same kind."""
    kind = slice_.name.rpartition("-")[0]
    counted = _GENERATIONS[kind].counted if kind in _GENERATIONS else 1
    return open_slice(f"{kind}-{counted}")


def topology(chips: int, dimensions: int) -> tuple[int, ...] | None:
    """The torus of so many chips, as Cloud TPU builds slices by default; None: there is none.

    Each is the one of half as many chips with a side doubled, the last that is shortest:
    2x2, 2x4, 4x4, ...; 2x2x1, 2x2x2, 2x2x4, 2x4x4, ....
    """
    if chips == 1:
        return (1,) * dimensions
    sides = (2, 2) + (1,) * (dimensions - 2)
    while (size := math.prod(sides)) < chips:
        last = max(i for i, side in enumerate(sides) if side == min(sides))
        sides = tuple(2 * side if i == last else side for i, side in enumerate(sides))
    return sides if size == chips <= _MOST_CHIPS[dimensions] else None


def _tpu_slice(name: str, generation: _Generation, number: int) -> Slice:
    chips = number // generation.counted
    sides = topology(chips, generation.dimensions) if number % generation.counted == 0 else None
    if sides is None:
        kind, dimensions = name.rpartition("-")[0], generation.dimensions
        sizes = [2**power for power in range(13) if topology(2**power, dimensions)]
        offered = ", ".join(str(size * generation.counted) for size in sizes)
        unit = "TensorCores, 2 of each chip" if generation.counted == 2 else "chips"
        raise UserError(f"--on={name}: slices of {kind} have {offered} {unit}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f'--on={name} needs the TPU\'s compiler: pip install ".[tpu]" (no TPU is needed)'
        )
    os.environ.update(_LIBTPU)
    options = dict(generation.options)
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    shape = "x".join(map(str, sides))
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{generation.topology}:{shape}", **options
    )
    return _described(name, described.devices, chips)


def _gpu_host(name: str, kind: str, number: int) -> Slice:
    if number > _MOST_GPUS:
        raise UserError(
            f"--on={name}: a host has at most {_MOST_GPUS} GPUs; use {kind}-{_MOST_GPUS}"
        )
    if not any(map(importlib.util.find_spec, ("jax_cuda13_plugin", "jax_cuda12_plugin"))):
        raise UserError(
            f'--on={name} needs the GPU\'s compiler: pip install ".[gpu]" (no GPU is needed)'
        )
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=kind,
        topology=f"1x1x{number}",
        target_config=GPU_TARGETS[kind],
    )
    return _described(name, described.devices, number)


def _described(name: str, devices: Sequence[Any], chips: int) -> Slice:
    return Slice(name, devices, chips, accelerator_of(devices[0].device_kind))


def _cpus(number: int) -> Sequence[Any]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Where JAX has started, it has the devices that it has.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", number)
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise UserError(
            f"--on=cpu-{number}: JAX has started with {len(devices)} CPU devices; use as many"
        )
    return devices[:number]
