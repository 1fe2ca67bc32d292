"""The collectives of a compiled program: how many of each kind, over which axes of the mesh, and
how many bytes.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.experiment.plan.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_EXPLICIT = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_RANGE = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_IOTA = re.compile(rf"replica_groups=\[([\d,]+)\]<={_RANGE}")
_MESH = re.compile(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_RANGE}\))? *\{{([^}}]*)\}}"
)
_SUB_AXIS = re.compile(r"'([\w.]+)'(?::\((\d+)\)(\d+))?")


class Collective(NamedTuple):
    """Collectives of one kind over the same axes, in one call of the program.

    Attributes:
      kind: one of `KINDS`.
      axes: of the mesh, those along which devices exchange data, such as ("fsdp",).
      runs: how often one runs.
      bytes: of the whole arrays that are gathered, reduced or moved, on a device.
      sent: bytes that a device sends, by the least that a ring of n devices needs: (n - 1) / n of
        the array where it is gathered, scattered or exchanged, twice that where it is reduced on
        all, and all of it where it is moved.
    """

    kind: str
    axes: tuple[str, ...]
    runs: int
    bytes: int
    sent: float


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program on a mesh of these axes and sizes, most bytes first.

    What a compiler splits over several fusions by one channel, to compute meanwhile, is one: a loop
    that is computed meanwhile runs more often than what starts and ends the exchange.
    """
    single: dict[object, tuple[int, Collective]] = {}
    fused = module.fused
    for runs, computation, instruction in module.instructions():
        if (kind := instruction.opcode.removesuffix("-start")) not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        key = (computation.name, instruction.name)
        if channel and computation.name in fused:
            key = (kind, channel[1])
        if key not in single or runs < single[key][0]:
            single[key] = runs, _collective(computation, instruction, kind, mesh)
    sums: dict[tuple[str, tuple[str, ...]], Collective] = {}
    for runs, each in single.values():
        if not each.axes:
            continue
        old = sums.get((each.kind, each.axes), each._replace(runs=0, bytes=0, sent=0.0))
        sums[each.kind, each.axes] = old._replace(
            runs=old.runs + runs,
            bytes=old.bytes + runs * each.bytes,
            sent=old.sent + runs * each.sent,
        )
    return sorted(sums.values(), key=lambda each: -each.sent)


def _collective(
    computation: Computation, instruction: Instruction, kind: str, mesh: Mapping[str, int]
) -> Collective:
    given = [computation.instructions[name].arrays for name in instruction.operands]
    operand = sum(array.bytes for of in given for array in of)
    groups = replica_groups(instruction.attributes, math.prod(mesh.values()))
    size, axes = len(groups[0]), axes_of(groups, mesh)
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # as TPUs have it, in a fusion that keeps a part of the sum
    whole = operand * size if kind == "all-gather" else operand
    share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}
    return Collective(kind, axes, 1, whole, whole * share.get(kind, (size - 1) / size))


def replica_groups(attributes: str, devices: int) -> Sequence[Sequence[int]]:
    """The groups of devices among which a collective works, or the pairs of a permutation.

    Written as "{{0,1},{2,3}}", "[2,2]<=[4]" (a reshaped, transposed range), or
    "mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}" (the devices of a mesh that differ in the
    named axes alone).
    """
    if found := _EXPLICIT.search(attributes):
        return [[int(x) for x in group.split(",")] for group in re.findall(r"{([\d,]+)}", found[1])]
    if found := _IOTA.search(attributes):
        return range_of(found[2], found[3]).reshape(int(found[1].split(",")[0]), -1).tolist()
    if found := _MESH.search(attributes):
        numbers = range_of(found[2] or str(devices), found[3])
        return _mesh_groups(found[1], numbers, found[4])
    return [list(range(devices))]


def range_of(shape: str, order: str | None) -> np.ndarray:
    """The numbers 0, 1, ... in an array of a shape, such as "2,4", with its axes in an order."""
    sizes, axes = ([int(x) for x in (text or "").split(",") if x] for text in (shape, order))
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(axes or None)


def _mesh_groups(sizes: str, numbers: np.ndarray, named: str) -> Sequence[Sequence[int]]:
    """The groups of a mesh; an axis 'a':(2)4 is the part of size 4 behind one of size 2."""
    axes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", sizes)}
    taken = {name: (int(p or 1), int(s or axes[name])) for name, p, s in _SUB_AXIS.findall(named)}
    shape, chosen = [], []
    for name, size in axes.items():
        before, own = taken.get(name, (1, 1))
        chosen.append(len(shape) + 1)
        shape += [before, own, size // before // own]
    numbers = numbers.reshape(shape)
    rest = [i for i in range(len(shape)) if i not in chosen]
    group = math.prod(shape[i] for i in chosen)
    return numbers.transpose(rest + chosen).reshape(-1, group).tolist()


def axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the devices of a group differ, in any of the groups."""
    places = np.stack(np.unravel_index(np.arange(math.prod(mesh.values())), tuple(mesh.values())))
    differs = [False] * len(mesh)
    for group in groups:
        spread = places[:, list(group)]
        differs = [a or b for a, b in zip(differs, (spread != spread[:, :1]).any(1), strict=True)]
    return tuple(itertools.compress(mesh, differs))
