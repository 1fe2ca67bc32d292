"""Reads the text of a compiled program: its computations, their instructions, and how often each
computation runs in one call of the program.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|\w+_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BITS = re.compile(r"\d+")
_RUN_IN_PLACE = ("while", "conditional", "call", "async-start")
# Numbers of fewer than 8 bits take a byte each on most devices.
_SIZES = {"pred": 1, "token": 0, "opaque": 0}


class Array(NamedTuple):
    """An array type: its dimensions, bytes, and whether it lies in the device's main memory."""

    dimensions: tuple[int, ...]
    bytes: int
    in_memory: bool


class Instruction(NamedTuple):
    """An instruction of a computation.

    Attributes:
      name: unique within its computation.
      shape: its type as it is written; `arrays` reads it.
      opcode: such as "all-gather", "fusion" or "while".
      operands: the names of instructions that it uses.
      argument: what is written in its parentheses.
      attributes: what follows them.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    attributes: str

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result; several of a tuple."""
        return arrays(self.shape)

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        listed = [_NAME.findall(group) for group in _CALLED_LIST.findall(self.attributes)]
        return _CALLED.findall(self.attributes) + [name for names in listed for name in names]


class Computation(NamedTuple):
    """A function of the program, with its instructions in their order by name; one is its root."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str


class Module(NamedTuple):
    """A compiled program.

    Attributes:
      computations: by name.
      runs: how often each runs in one call, by name.
      unknown_loops: how many loops have a number of trips that the text does not tell; each is
        counted once.
    """

    computations: Mapping[str, Computation]
    runs: Mapping[str, int]
    unknown_loops: int

    @property
    def fused(self) -> set[str]:
        """The computations that are a part of an instruction: of a fusion, a reduction, ...."""
        return {
            name
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode not in _RUN_IN_PLACE
            for name in instruction.called
        }

    def instructions(self) -> Iterator[tuple[int, Computation, Instruction]]:
        """Every instruction that runs, after how often it does and where it stands."""
        for name, computation in self.computations.items():
            if count := self.runs.get(name):
                for instruction in computation.instructions.values():
                    yield count, computation, instruction


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a type such as "(f32[2,3]{1,0}, s32[])".

    A layout with the memory space S(n) lies outside of the device's main memory.
    """
    found = []
    for kind, sizes, layout in _ARRAY.findall(shape):
        dimensions = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        bits = _BITS.search(kind)
        each = _SIZES.get(kind, max(1, int(bits[0]) // 8) if bits else 0)
        in_memory = not re.search(r"S\([1-9]\d*\)", layout)
        found.append(Array(dimensions, math.prod(dimensions) * each, in_memory))
    return tuple(found)


def read_module(text: str) -> Module:
    """The program of an optimized HLO text, as `jax.stages.Compiled.as_text` gives it."""
    computations, entry = {}, ""
    name, root, body = "", "", {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, root, body = header[2], "", {}
            entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, body, root)
        elif found := _LINE.match(line):
            body[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
    runs: dict[str, int] = {}
    unknown = _count(computations, entry, 1, runs)
    return Module(computations, runs, unknown)


def _instruction(name: str, text: str) -> Instruction:
    shape_end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[shape_end:].lstrip().partition("(")
    end = _closing(rest, -1)
    argument = rest[:end]
    operands = tuple(_NAME.findall(argument))
    return Instruction(name, text[:shape_end], opcode, operands, argument, rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`, or one before the text."""
    depth = 0 if start >= 0 else 1
    for place in range(max(start, 0), len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


def _count(
    computations: Mapping[str, Computation], name: str, times: int, runs: dict[str, int]
) -> int:
    """Adds to `runs` what a computation runs, `times` over; how many loops are unknown in it."""
    runs[name] = runs.get(name, 0) + times
    computation, unknown = computations[name], 0
    for instruction in computation.instructions.values():
        trips = 1
        if instruction.opcode == "while":
            known = _trips(computations, computation, instruction)
            unknown += known is None
            trips = 1 if known is None else known
        for called in instruction.called:
            if called in computations:
                unknown += _count(computations, called, times * trips, runs)
    return unknown


def _trips(
    computations: Mapping[str, Computation], caller: Computation, loop: Instruction
) -> int | None:
    """How often a loop's body runs: as the compiler says, or by its condition, `counter < limit`,
    and its body, which adds a constant to the counter; None where it is of another kind.
    """
    if said := _TRIPS.search(loop.attributes):
        return int(said[1])
    names = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.attributes))
    condition, body = computations[names["condition"]], computations[names["body"]]
    test = _arguments(computations, condition, condition.instructions[condition.root])
    if test is None or test[0] != "compare(LT)":
        return None
    counter, limit = (_place(condition, name) for name in test[1])
    last = body.instructions[body.root]
    if counter is None or last.opcode != "tuple":
        return None
    added = _arguments(computations, body, body.instructions[last.operands[counter]])
    if added is None or added[0] != "add":
        return None
    steps = [_number(body, name) for name in added[1]]
    step = next((number for number in steps if number), None)
    begin = _carried(caller, loop, counter)
    end = _number(condition, test[1][1]) if limit is None else _carried(caller, loop, limit)
    if step is None or begin is None or end is None:
        return None
    return max(0, -(-(end - begin) // step))


def _arguments(
    computations: Mapping[str, Computation], computation: Computation, instruction: Instruction
) -> tuple[str, list[str]] | None:
    """An instruction's opcode and operands; of a fusion, those of the one that it consists of."""
    names = list(instruction.operands)
    if instruction.opcode == "fusion":
        inner = computations[instruction.called[0]]
        instruction = inner.instructions[inner.root]
        outer = names
        names = []
        for name in instruction.operands:
            given = inner.instructions[name]
            if given.opcode != "parameter":
                return None
            names.append(outer[int(given.argument)])
    direction = re.search(r"direction=(\w+)", instruction.attributes)
    return instruction.opcode + (f"({direction[1]})" if direction else ""), names


def _place(computation: Computation, name: str) -> int | None:
    """Which part of what a loop carries an instruction takes."""
    instruction = computation.instructions[name]
    found = re.search(r"index=(\d+)", instruction.attributes)
    return int(found[1]) if instruction.opcode == "get-tuple-element" and found else None


def _carried(caller: Computation, loop: Instruction, place: int) -> int | None:
    """The number that a loop begins with at a place of what it carries."""
    begun = caller.instructions[loop.operands[0]]
    return _number(caller, begun.operands[place]) if begun.opcode == "tuple" else None


def _number(computation: Computation, name: str) -> int | None:
    """The constant that an instruction is, or copies."""
    value = computation.instructions[name]
    while value.opcode in ("copy", "bitcast"):
        value = computation.instructions[value.operands[0]]
    constant = value.opcode == "constant" and re.fullmatch(r"-?\d+", value.argument)
    return int(value.argument) if constant else None
