"""Holds what is there for CPUs alone; each piece gives the benchmark figure that it is kept for."""

import ctypes
import importlib.util
import sys
from typing import TypeVar

import jax

from lm.devices.platform import platform

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def fusion_barrier(x: T) -> T:
    """The same value, computed once and stored, on a CPU; nothing elsewhere.

    XLA's CPU backend fuses a cheap-looking producer into each of its consumers, and so computes
    exponentials, tanh and norms several times over. A barrier, which also stands in the backward
    pass, stops that. GPU and TPU compilers fuse well and lose by it.
    """
    return jax.lax.optimization_barrier(x) if platform() == "cpu" else x


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks, where JAX has no accelerator; before threads start.

    A step on a CPU takes and frees hundreds of megabytes. By default glibc maps such blocks anew
    each time, and the kernel clears every page of them again.
    """
    accelerators = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
    if sys.platform != "linux" or any(map(importlib.util.find_spec, accelerators)):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # Another C library, such as musl.
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
