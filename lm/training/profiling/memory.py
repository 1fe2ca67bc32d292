"""The memory that a program needs: the least by the shapes of its arrays, before anything is
compiled, and what the compiler says of a step.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from lm.errors import UserError
from lm.training.program import Program
from lm.training.train_state import Params, Rows, TrainState

_GIB = 2**30


def check_memory(program: Program, trains: bool = True) -> None:
    """Raises UserError where a device cannot hold what even the smallest batch needs.

    That is the state and the gradients, in float32 at least, of what is trained; or the parameters
    alone, where nothing is trained. Activations come on top.
    """
    state = program.abstract_state
    least = state_and_gradient_bytes(program) if trains else bytes_per_device(state.all_params)
    most = device_memory(list(program.mesh.devices.flat))
    if most is None or least <= most:
        return
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.all_params))
    what = "parameters, gradients and optimizer state take" if trains else "parameters take"
    part = ", train a part of them by config.finetuning.method = 'lora'" if trains else ""
    raise UserError(
        f"config.model has {count:,} parameters: {what} at least {least / _GIB:,.1f} GiB on each "
        f"device, which has {most / _GIB:,.1f} GiB; make config.model smaller{part}, or share them "
        "among more devices by config.mesh.fsdp"
    )


def device_memory(devices: list[Any]) -> int | None:
    """Bytes that a program may take of one device, of those that are this process's.

    CPUs have equal parts of the host's memory, or of what its control group allows. None where
    nothing says.
    """
    own = [each for each in devices if each.process_index == jax.process_index()]
    if not own:
        return None
    if own[0].platform != "cpu":
        return (own[0].memory_stats() or {}).get("bytes_limit")
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        found.append(int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found) // len(own) if found else None


def peak_memory(devices: Sequence[Any]) -> int | None:
    """The most bytes that a device of these has held since the process began; None where the
    backend does not say, as on CPUs.
    """
    found = [(each.memory_stats() or {}).get("peak_bytes_in_use") for each in devices]
    return max((peak for peak in found if peak is not None), default=None)


def state_and_gradient_bytes(program: Program) -> int:
    """Bytes that the state and the gradients take on one device, whatever the batch."""
    state = program.abstract_state
    return bytes_per_device(state) + bytes_per_device(state.params, 4)


def bytes_per_device(tree: Params | TrainState, each: int = 0) -> int:
    """Bytes of arrays with shardings on one device, every number in `each` bytes at least."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * max(x.dtype.itemsize, each)
        for x in jax.tree.leaves(tree)
    )


def step_memory(program: Program, state: TrainState, rows: Rows, key: jax.Array) -> int | None:
    """Bytes of the compiled step on one device: its arguments and its temporaries.

    The arguments are parameters, optimizer state and rows, which the new state overwrites; the
    temporaries are gradients and activations. A step that has run with these arguments is not
    compiled again. None where the backend does not say.
    """
    found = program.train_step.lower(state, rows, key).compile().memory_analysis()
    return None if found is None else found.argument_size_in_bytes + found.temp_size_in_bytes
