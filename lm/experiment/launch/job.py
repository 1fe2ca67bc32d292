"""What is launched, and what an engine makes of it: files, and the commands that submit them."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from lm.devices.slice_names import SliceSpec

# What installs the project where there is nothing but Python: uv brings the Python that it needs.
_INSTALL = """\
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e {package}
"""
_EXTRAS = {"tpu": "tpu", "gpu": "gpu", "cpu": ""}


@dataclasses.dataclass(frozen=True)
class Job:
    """A command of run.py for a number of workers, each of which is one slice.

    Attributes:
      name: of letters, digits and hyphens, for the engine's lists of jobs.
      arguments: of run.py; the same for every worker.
      workdir: the folder in which the workers work, local or in a bucket.
      slice: what each worker runs on.
      workers: how many there are.
      spot: whether they may be preempted, at a lower price.
      image: the container image that holds the project; None: the engine needs none.
    """

    name: str
    arguments: tuple[str, ...]
    workdir: str
    slice: SliceSpec
    workers: int = 1
    spot: bool = False
    image: str | None = None

    def command(self, python: str = "python") -> str:
        """The line that every host of every worker runs."""
        return shlex.join([python, "run.py", *self.arguments])

    def worker_name(self, worker: int) -> str:
        """The name of a worker of several, counted from 0; of one, that of the job."""
        return self.name if self.workers == 1 else f"{self.name}-{worker}"

    @property
    def worker_names(self) -> list[str]:
        """The names of all workers."""
        return [self.worker_name(worker) for worker in range(self.workers)]

    @property
    def in_bucket(self) -> bool:
        """Whether the workdir is in a bucket, which every machine can reach."""
        return "://" in self.workdir

    @property
    def install(self) -> str:
        """Shell lines that install the project in .venv of its folder."""
        extra = _EXTRAS[self.slice.kind]
        extras = ",".join(filter(None, [extra, "bucket" if self.in_bucket else ""]))
        return _INSTALL.format(package=shlex.quote(f".[{extras}]" if extras else "."))


@dataclasses.dataclass(frozen=True)
class Submission:
    """What an engine takes.

    Attributes:
      files: their texts by name.
      commands: what submits them, run one after the other in the project's folder.
      text: what is printed.
    """

    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commands: Sequence[Sequence[str]] = ()
    text: str = ""
