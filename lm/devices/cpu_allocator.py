"""Who gives memory back to the system between steps? On a CPU under glibc, nobody should."""

import ctypes
import importlib.util
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


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
