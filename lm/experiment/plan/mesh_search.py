"""Searches the meshes of a slice for the one whose training step has the least roofline."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lm.config import Config, override
from lm.devices.slices import Slice
from lm.errors import UserError
from lm.experiment.plan.compile import DoesNotFit
from lm.experiment.plan.roofline import Plan, make_plan


class Tried(NamedTuple):
    """A mesh and its plan; without one, `refused` says why."""

    mesh: dict[str, int]
    plan: Plan | None
    refused: str = ""


def search_meshes(
    config: Config, on: Slice, memory: float | None, report: Callable[[Tried], None]
) -> list[Tried]:
    """Every mesh of the slice: those that fit first, by their roofline, and of those alike with the
    least memory.

    Args:
      config: whose mesh is replaced.
      on: the slice.
      memory: see `make_plan`.
      report: is told of each as it is found.
    """
    found = []
    for mesh in meshes(len(on.devices)):
        changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        try:
            tried = Tried(mesh, make_plan(override(config, changes), on, memory))
        except UserError as error:
            tried = Tried(mesh, None, str(error))
        except DoesNotFit:
            tried = Tried(mesh, None, "does not fit")
        report(tried)
        found.append(tried)
    return sorted(found, key=_rank)


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """The ways to write a number as data x fsdp x tensor."""
    for tensor in _divisors(devices):
        for fsdp in _divisors(devices // tensor):
            yield {"data": devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _rank(tried: Tried) -> tuple[bool, float, int]:
    if tried.plan is None:
        return True, 0.0, 0
    return False, tried.plan.seconds or 0.0, tried.plan.bytes
