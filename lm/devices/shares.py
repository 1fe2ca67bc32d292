"""Divides the accelerators of this machine, or where it has none its cores, among processes side by
side. No device is touched, since whoever does so holds it.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from jax._src import hardware_utils  # JAX has no public form of what is used of it

from lm.errors import UserError, counted

T = TypeVar("T")


class Share(NamedTuple):
    """What one of several processes has for itself.

    Attributes:
      environment: variables by which it sees its accelerators alone.
      cores: the numbers of its cores; None: all.
    """

    environment: Mapping[str, str]
    cores: frozenset[int] | None = None


# The packages that bring a kind of device to JAX.
_PLUGINS = {
    "tpu": ("libtpu",),
    "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
    "rocm": ("jax_rocm7_plugin",),
}
# The chips that a process may have, and their arrangement; the form of JAX's own tests.
_TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


def divide(number: int) -> list[Share]:
    """Equal shares of this machine for `number` processes; a remainder stays idle, since the same
    run differs in its last digits between different shares.

    A process has whole accelerators, of TPUs 1, 2, 4 or 8 chips. Their kind is the one that JAX
    takes: by JAX_PLATFORMS, or without it by the installed plugin whose devices are there.

    Raises:
      UserError: where there are fewer accelerators, or cores, than processes.
    """
    kind = _kind()
    if kind == "cpu":
        cores = sorted(available_cores())
        share = _share_of(len(cores), number, "core")
        return [Share({}, frozenset(each)) for each in _parts(cores, share, number)]
    variable, found = _accelerators(kind)
    share = _share_of(len(found), number, "TPU chip" if kind == "tpu" else "GPU")
    if kind != "tpu":
        return [Share({variable: ",".join(each)}) for each in _parts(found, share, number)]
    share = max(each for each in _TPU_BOUNDS if each <= share)
    whole = {
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _TPU_BOUNDS[share],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    return [Share({variable: ",".join(each), **whole}) for each in _parts(found, share, number)]


def available_cores() -> frozenset[int]:
    """The cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _share_of(available: int, number: int, noun: str) -> int:
    if number > available:
        raise UserError(
            f"--jobs={number}: this machine has {counted(available, noun)} for them; use at most "
            f"--jobs={available}, or start more workers on other machines by sweep --share"
        )
    return available // number


def _parts(found: list[T], share: int, number: int) -> list[list[T]]:
    return [found[i * share : (i + 1) * share] for i in range(number)]


def _kind() -> str:
    """The platform whose devices JAX would take: "tpu", "cuda", "rocm" or "cpu"."""
    chosen = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if chosen:
        return "cuda" if chosen == "gpu" else chosen
    for kind, names in _PLUGINS.items():
        if any(map(importlib.util.find_spec, names)) and _accelerators(kind)[1]:
            return kind
    return "cpu"


def _accelerators(kind: str) -> tuple[str, list[str]]:
    """The variable that names those which a process sees, and their names now."""
    if kind not in _COUNTS:
        raise UserError(f"--jobs divides CPUs, GPUs and TPUs, not JAX_PLATFORMS={kind}")
    variable, count = _COUNTS[kind]
    if (given := os.environ.get(variable)) is not None:
        return variable, [name for name in given.split(",") if name]
    return variable, [str(number) for number in range(max(count(), 0))]


def _count_nvidia() -> int:
    found = Path("/dev").glob("nvidia*")
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in found)


def _count_tpu() -> int:
    return hardware_utils.num_available_tpu_chips_and_device_id()[0]


_COUNTS = {
    "tpu": ("TPU_VISIBLE_CHIPS", _count_tpu),
    "cuda": ("CUDA_VISIBLE_DEVICES", _count_nvidia),
    "rocm": ("HIP_VISIBLE_DEVICES", hardware_utils.num_available_amd_gpus),
}
