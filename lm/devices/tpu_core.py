"""What Pallas kernels for a core of a TPU have in common: its memory, its lanes, and their call."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.devices.platform import target_device

LANES = 128  # of a register
# Of `jax.lax.dot_general`: the last axis of both matrices, or the first, is contracted.
CONTRACT_LAST = ((1,), (1,)), ((), ())
CONTRACT_FIRST = ((0,), (0,)), ((), ())

Ref = Any  # a block of an array, in a core's memory

# Half of what TPUs have since v5e, and all that a v4 has.
_LARGE_MEMORY, _MEMORY = 64 * 2**20, {"TPU v4": 16 * 2**20}


def core_memory() -> int:
    """Bytes that a kernel may take of the own memory (VMEM) of a core of `target_device`, a TPU."""
    return _MEMORY.get(target_device().device_kind, _LARGE_MEMORY)


def run_kernel(
    kernel: Callable[..., None],
    operands: object,
    specs: object,
    *,
    name: str,
    grid: tuple[int, ...],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    scratch: Sequence[Any] = (),
    scalars: Sequence[jax.Array] = (),
    in_order: int = 1,
    interpret: bool = False,
) -> list[jax.Array]:
    """Runs `kernel(*scalars, operands, *outputs, *scratch)` at each place of the grid.

    Args:
      kernel: gets references: to the scalars as a whole, and to blocks of all else; those of the
        operands in the tree that these have.
      operands: what is read, a tree of arrays.
      specs: their blocks, in a tree of the same form.
      name: of the kernel, in profiles and schedules.
      grid: how often it runs, along each axis.
      outputs: what is written: shape and dtype, and blocks.
      scratch: arrays of the core's memory.
      scalars: known before a block is fetched, so that places of blocks may depend on them.
      in_order: how many of the grid's last axes must run in order; a chip's cores share the others.
      interpret: on any device, slowly.
    """
    arrays, tree = jax.tree.flatten(operands)
    first, last = len(scalars), len(scalars) + len(arrays)

    def with_operands(*refs: Ref) -> None:
        kernel(*refs[:first], jax.tree.unflatten(tree, refs[first:last]), *refs[last:])

    return pl.pallas_call(
        with_operands,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=jax.tree.leaves(specs),
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=list(scratch),
        ),
        out_shape=[shape for shape, _ in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * (len(grid) - in_order) + ("arbitrary",) * in_order,
            vmem_limit_bytes=core_memory(),
        ),
        interpret=interpret,
        name=name,
    )(*scalars, *arrays)
