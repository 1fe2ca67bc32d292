"""What is launched, and what an engine makes of it: files, and the commands that submit them."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from lm.devices.slice_names import SliceSpec

# What installs the project on a bare machine: uv brings the Python that it needs.
_INSTALL = """\
command -v uv > /dev/null || curl --fail --silent --location https://astral.sh/uv/install.sh | sh
export PATH="$HOME/.local/bin:$PATH"
uv venv --quiet --allow-existing --python 3.12 .venv
uv pip install --quiet --python .venv/bin/python -e {package}
"""
# By which the first host of a worker is met, where the hosts do not know of each other.
PORT = 12345
_EXTRAS = {"tpu": "tpu", "gpu": "gpu", "cpu": ""}


def host_flags(coordinator: str, num_processes: int | str, process_id: int | str) -> list[str]:
    """The flags by which the processes of one worker meet; see `lm.devices.hosts`."""
    return [
        f"--coordinator={coordinator}:{PORT}",
        f"--num_processes={num_processes}",
        f"--process_id={process_id}",
    ]


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

    def command(self, python: str = "python", *more: str) -> str:
        """The line that every host of every worker runs."""
        return shlex.join([python, "run.py", *self.arguments, *more])

    @property
    def hosts_need_flags(self) -> bool:
        """Whether the hosts of a worker do not know of each other, as those of a TPU do."""
        return self.slice.hosts > 1 and self.slice.kind != "tpu"

    @property
    def worker_names(self) -> list[str]:
        """A name for each worker, numbered from 0; a single one has that of the job."""
        if self.workers == 1:
            return [self.name]
        return [f"{self.name}-{worker}" for worker in range(self.workers)]

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
