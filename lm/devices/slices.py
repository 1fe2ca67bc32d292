"""Slices of TPUs, hosts of GPUs and CPUs by their names, and descriptions of their devices, for
which programs can be compiled where none of them is.
"""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from lm.devices.accelerators import Accelerator, accelerator_of
from lm.devices.gpu_targets import GPU_TARGETS
from lm.devices.slice_names import SliceSpec, find_slice
from lm.errors import UserError


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


# What libtpu needs to know besides: a chip of v4 is one device where its two cores work as one, as
# Cloud TPU has them.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}

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
    return _open(name, find_slice(name))


def one_chip(slice_: Slice) -> Slice:
    """One chip of the same kind."""
    spec = find_slice(slice_.name)
    counted = int(spec.name.rpartition("-")[2]) // spec.chips
    topology = "x".join("1" for side in spec.topology.split("x") if side)
    single = dataclasses.replace(spec, chips=1, hosts=1, topology=topology)
    return _open(f"{spec.accelerator}-{counted}", single)


def _open(name: str, spec: SliceSpec) -> Slice:
    if spec.kind == "tpu":
        return _tpu_slice(name, spec)
    if spec.kind == "gpu":
        return _gpu_host(name, spec)
    return Slice(name, _cpus(spec.chips), spec.chips, None)


def _tpu_slice(name: str, spec: SliceSpec) -> Slice:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f'--on={name} needs the TPU\'s compiler: pip install ".[tpu]" (no TPU is needed)'
        )
    os.environ.update(_LIBTPU)
    options: dict[str, Any] = dict(_OPTIONS.get(spec.accelerator, {}))
    if spec.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{spec.accelerator}:{spec.topology}", **options
    )
    return _described(name, described.devices, spec.chips)


def _gpu_host(name: str, spec: SliceSpec) -> Slice:
    if spec.hosts > 1 or spec.accelerator not in GPU_TARGETS:
        raise UserError(
            f"--on={name}: programs are compiled for one host of {', '.join(GPU_TARGETS)}, with "
            "at most 8 GPUs"
        )
    if not any(map(importlib.util.find_spec, ("jax_cuda13_plugin", "jax_cuda12_plugin"))):
        raise UserError(
            f'--on={name} needs the GPU\'s compiler: pip install ".[gpu]" (no GPU is needed)'
        )
    try:
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name=spec.accelerator,
            topology=f"1x1x{spec.chips}",
            target_config=GPU_TARGETS[spec.accelerator],
        )
    except NotImplementedError:  # JAX has said why above
        raise UserError(
            f'--on={name}: the GPU\'s compiler does not load; pip install ".[gpu]" again'
        ) from None
    return _described(name, described.devices, spec.chips)


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
