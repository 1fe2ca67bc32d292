"""Searches the meshes of a slice for the one whose training step has the least roofline."""

from collections.abc import Iterator
from typing import NamedTuple

from lm.config import Config, override
from lm.devices.slices import Slice
from lm.errors import UserError
from lm.experiment.plan.compile import DoesNotFit
from lm.experiment.plan.roofline import Plan, make_plan

Sizes = dict[str, int]  # of the mesh's axes


class Tried(NamedTuple):
    """A mesh and its plan; without one, `refused` says why."""

    mesh: Sizes
    plan: Plan | None
    refused: str = ""

    @property
    def rank(self) -> tuple[float, int]:
        """Smaller is better: by the roofline, and of meshes alike by memory."""
        assert self.plan is not None
        return self.plan.seconds or 0.0, self.plan.bytes


def search_meshes(config: Config, on: Slice, memory: float | None = None) -> Iterator[Tried]:
    """Plans a config with every mesh of a slice, with its own axis sequence; see `make_plan`."""
    for mesh in meshes(len(on.devices) // max(config.mesh.sequence, 1)):
        changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        try:
            yield Tried(mesh, make_plan(override(config, changes), on, memory))
        except UserError as error:
            yield Tried(mesh, None, str(error))
        except DoesNotFit:
            yield Tried(mesh, None, "does not fit")


def meshes(devices: int) -> Iterator[Sizes]:
    """The ways to write a number as data x fsdp x tensor."""
    for tensor in _divisors(devices):
        for fsdp in _divisors(devices // tensor):
            yield {"data": devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
