"""The matrix products of a compiled program, and the bytes between a device and its memory; loops
count as often as they run, unlike in XLA's own cost analysis.
"""

import math
import re
from collections.abc import Callable

import numpy as np

from lm.experiment.plan.collectives import KINDS
from lm.experiment.plan.hlo import Computation, Instruction, Module

# Instructions that move nothing; the end of what runs meanwhile is counted at its start.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_FREE |= {"while", "conditional", "call", "async-start", "async-update", "add-dependency"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "domain"}

_OPAQUE = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha|mosaic_gpu)')


def product_flops(module: Module) -> float:
    """FLOPs of a device's matrix products: 2 m n k of each [m, k] x [k, n], recomputation included.

    Kernels that are opaque to the compiler (Pallas, cuDNN's attention) count as nothing.
    """
    return sum(
        float(runs) * COUNTED[instruction.opcode](computation, instruction)
        for runs, computation, instruction in module.instructions()
        if instruction.opcode in COUNTED
    )


def opaque_kernels(module: Module) -> int:
    """How many calls of kernels run that do matrix products of their own."""
    return sum(
        runs
        for runs, _, instruction in module.instructions()
        if instruction.opcode == "custom-call" and _OPAQUE.search(instruction.attributes)
    )


def memory_bytes(module: Module) -> float:
    """Bytes that a device reads of its main memory and writes to it: operands and results of every
    instruction, a fusion being one, without what stays in on-chip memory. An exchange that other
    fusions carry on moves bytes where it starts.
    """
    inside = module.fused
    return sum(
        float(runs) * _moved(module, computation, instruction)
        for runs, computation, instruction in module.instructions()
        if computation.name not in inside
    )


def seconds_in_order(module: Module, peak_flops: float, bandwidth: float) -> float:
    """Seconds that a device takes at least where its instructions run one after the other: each the
    larger of its matrix products at the peak of FLOP/s and its bytes at the bandwidth. Kernels that
    are opaque to the compiler count as nothing.
    """
    inside, total = module.fused, 0.0
    for runs, computation, instruction in module.instructions():
        if computation.name not in inside and not _OPAQUE.search(instruction.attributes):
            flops = _products(module, computation, instruction)
            moved = _moved(module, computation, instruction)
            total += runs * max(flops / peak_flops, moved / bandwidth)
    return total


def _products(module: Module, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of the matrix products of an instruction, a fusion's with those inside."""
    if instruction.opcode in COUNTED:
        return COUNTED[instruction.opcode](computation, instruction)
    if instruction.opcode != "fusion":
        return 0.0
    fused = module.computations[instruction.called[0]]
    return sum(_products(module, fused, each) for each in fused.instructions.values())


def _moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0
    fused = None
    if instruction.opcode == "fusion":
        fused = module.computations[instruction.called[0]]
        if "AsyncCollectiveDone" in fused.instructions[fused.root].attributes:
            return 0
    whole = sum(array.bytes for array in instruction.arrays if array.in_memory)
    read = 0
    for place, name in enumerate(instruction.operands):
        size = _in_memory(computation.instructions[name])
        read += min(size, size if fused is None else _used(fused, place))
        if instruction.opcode.endswith("-start"):
            whole -= min(whole, size)  # its result names the operand again
    written = min(
        whole,
        _written(
            instruction if fused is None else fused.instructions[fused.root], fused or computation
        ),
    )
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        read = min(read, written)
    if instruction.opcode == "dynamic-update-slice":
        read = written
    return read + written


def _used(fused: Computation, place: int) -> int:
    """Bytes that a fusion reads of an operand: of one that it only slices, those of the slices; of
    one that it only writes a part of anew, none.
    """
    (name,) = (
        i.name
        for i in fused.instructions.values()
        if i.opcode == "parameter" and int(i.argument) == place
    )
    users = [i for i in fused.instructions.values() if name in i.operands]
    total = 0
    for user in users:
        if _goes_on(user, fused):
            continue
        if user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == name:
            total += sum(array.bytes for array in user.arrays)
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
            return sum(array.bytes for array in fused.instructions[name].arrays)
    return total


def _goes_on(instruction: Instruction, fused: Computation) -> bool:
    """Whether an instruction of a fusion only carries on an exchange, or hands on what it needs."""
    carries = fused.name.startswith("async_collective_fusion")
    handed_on = instruction.opcode == "parameter" or instruction.name == fused.root
    return carries and (handed_on or instruction.opcode in KINDS)


def _written(root: Instruction, computation: Computation) -> int:
    """Bytes that an instruction writes: of an update in place, those of the update."""
    if root.opcode == "tuple":
        results = [computation.instructions[each] for each in root.operands]
        return sum(
            _written(each, computation) for each in results if not _goes_on(each, computation)
        )
    if "AsyncCollectiveStart" in root.attributes:
        return _in_memory(computation.instructions[root.operands[0]])
    if root.opcode == "dynamic-update-slice":
        return sum(array.bytes for array in computation.instructions[root.operands[1]].arrays)
    return sum(array.bytes for array in root.arrays)


def _in_memory(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if array.in_memory)


def _dot(computation: Computation, instruction: Instruction) -> float:
    left = computation.instructions[instruction.operands[0]].arrays[0].dimensions
    found = re.search(r"lhs_contracting_dims={([\d,]*)}", instruction.attributes)
    contracted = [left[int(axis)] for axis in found[1].split(",") if axis] if found else []
    return 2.0 * math.prod(instruction.arrays[0].dimensions) * math.prod(contracted)


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """How TPUs write a product: its batch axes are windows that meet one place each."""
    left, right = (computation.instructions[n].arrays[0].dimensions for n in instruction.operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    sides = [dict(zip(labels[n], d, strict=True)) for n, d in ((1, left), (2, right))]
    out = dict(zip(labels[3], instruction.arrays[0].dimensions, strict=True))
    window = _window(instruction.attributes)
    total = 2.0 * out["b"] * out["f"] * sides[1]["i"]
    for axis in filter(str.isdecimal, labels[3]):
        total *= _meetings(
            sides[0][axis],
            out[axis],
            sides[1][axis],
            {name: values[int(axis)] for name, values in window.items()},
        )
    return total


def _window(attributes: str) -> dict[str, list[str]]:
    """A window's fields, such as {"size": ["2", "2"], "pad": ["0_0", "1_1"]}."""
    found = re.search(r"window={([^}]*)}", attributes)
    fields = found[1].split() if found else []
    return {name: values.split("x") for name, values in (field.split("=") for field in fields)}


def _meetings(size: int, outputs: int, taps: int, window: dict[str, str]) -> int:
    """Along one axis, how many pairs of an output and a tap of the kernel meet an element."""
    stride, dilation = int(window.get("stride", "1")), int(window.get("rhs_dilate", "1"))
    base, low = int(window.get("lhs_dilate", "1")), int(window.get("pad", "0_0").split("_")[0])
    places = np.arange(outputs)[:, None] * stride + np.arange(taps) * dilation - low
    return int(((places >= 0) & (places % base == 0) & (places // base < size)).sum())


def _kernel(computation: Computation, instruction: Instruction) -> float:
    """Products of cuBLAS, whose configuration has the contracted axes."""
    found = re.search(r'"lhs_contracting_dimensions":\["?([\d",]*)\]', instruction.attributes)
    if "cublas" not in instruction.attributes or not found:
        return 0.0
    left = computation.instructions[instruction.operands[0]].arrays[0].dimensions
    contracted = [left[int(axis)] for axis in re.findall(r"\d+", found[1])]
    return 2.0 * math.prod(instruction.arrays[0].dimensions) * math.prod(contracted)


COUNTED: dict[str, Callable[[Computation, Instruction], float]] = {
    "dot": _dot,
    "convolution": _convolution,
    "custom-call": _kernel,
}
