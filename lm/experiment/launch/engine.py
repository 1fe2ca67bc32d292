"""What an engine is: how it is given work, and what it can be given."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from lm.devices.slice_names import SliceSpec
from lm.experiment.launch.job import Job, Submission


@dataclasses.dataclass(frozen=True)
class Engine:
    """A program that starts workers on machines.

    Attributes:
      prepare: makes the files and commands for a job, with the folder of the files.
      tool: the program that submits them; None: a person does.
      install: how to get that program.
      kinds: of the slices that it has, "tpu", "gpu" and "cpu".
      lacks: accelerators of these kinds that it does not know.
      remote: whether workers start on other machines, which have no disk of this one.
      spot: whether it takes --spot.
      needs_image: whether workers are containers.
    """

    prepare: Callable[[Job, Path], Submission]
    tool: str | None = None
    install: str = ""
    kinds: tuple[str, ...] = ("tpu", "gpu", "cpu")
    lacks: tuple[str, ...] = ()
    remote: bool = True
    spot: bool = True
    needs_image: bool = False

    def takes(self, slice_: SliceSpec) -> bool:
        """Whether it has such machines."""
        return slice_.kind in self.kinds and slice_.accelerator not in self.lacks
