"""Launches a command: checks what is asked, writes the files of the engine and submits them."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lm.config import Config, load
from lm.data.files import write_text
from lm.devices.slice_names import find_slice
from lm.errors import UserError, nearest
from lm.experiment.launch import ENGINES
from lm.experiment.launch.job import Job, Submission

COMMANDS = ("train", "sweep", "table")
_OF_ABLATION = ("seeds=", "vary=", "draw=", "trials=")
_LONGEST_NAME = 40  # Kubernetes adds its own to it, up to 63


@dataclasses.dataclass(frozen=True)
class Request:
    """What `run.py launch` was asked for; its attributes are the flags of the same names.

    Attributes:
      engine: one of ENGINES.
      arguments: flags that each worker's command is given as they are.
      config, workdir, on, workers, spot, image: see `Job`.
      command: one of COMMANDS; None: sweep where the config's file has sweep() or the arguments
        make an ablation, else train.
    """

    engine: str
    arguments: Sequence[str]
    config: str
    workdir: str
    on: str
    workers: int = 1
    spot: bool = False
    image: str | None = None
    command: str | None = None


def make_job(request: Request) -> Job:
    """The job of a request.

    Raises:
      UserError: the engine cannot be given it.
    """
    if request.engine not in ENGINES:
        names = ", ".join(ENGINES)
        hint = nearest(request.engine, ENGINES)
        raise UserError(f"--with={request.engine} is not one of {names}{hint}")
    path = request.config.partition(":")[0]
    of_ablation = [x for x in request.arguments if x.lstrip("-").startswith(_OF_ABLATION)]
    has_sweep = bool(of_ablation) or hasattr(load(path), "sweep")
    command = request.command or ("sweep" if has_sweep else "train")
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS)
        raise UserError(f"--command={command} is not one of {', '.join(COMMANDS)}{hint}")
    if command != "train" and not has_sweep:
        raise UserError(
            f"--command={command}, but {path} has no sweep(); use --command=train, or --vary"
        )
    if command == "train" and request.workers > 1:
        raise UserError(
            f"--workers={request.workers} share the points of a sweep, and train has one run; use "
            "--workers=1, with a larger slice in --on"
        )
    if command == "train" and of_ablation:
        remedy = "leave it out, or set config keys, such as --config.seed"
        raise UserError(f"{of_ablation[0]} is of sweep and table; {remedy}")
    job = Job(
        name=job_name(request.workdir),
        arguments=(command, *request.arguments, f"--workdir={request.workdir}", "--share"),
        workdir=request.workdir,
        slice=find_slice(request.on),
        workers=request.workers,
        spot=request.spot,
        image=request.image,
    )
    _check(job, request.engine, path)
    return job


def _check(job: Job, name: str, path: str) -> None:
    """Raises UserError where an engine cannot start a job."""
    engine = ENGINES[name]
    if not engine.takes(job.slice):
        able = ", ".join(other for other, each in ENGINES.items() if each.takes(job.slice))
        raise UserError(f"--on={job.slice.name} is no machine of --with={name}; use {able}")
    if job.spot and not engine.spot:
        raise UserError(
            f"--spot is not known to {name}; leave it out, and choose a partition whose jobs are "
            "preempted by SBATCH_PARTITION=NAME"
        )
    if engine.remote and not job.in_bucket:
        raise UserError(
            f"--workdir={job.workdir} is a folder of this machine, which the workers of {name} do "
            "not see; use one in a bucket, such as gs://BUCKET/NAME"
        )
    if not Path("run.py").exists():
        raise UserError("workers run run.py: launch in its folder, that of the project")
    if engine.remote and (os.path.isabs(path) or os.path.normpath(path).startswith(os.pardir)):
        raise UserError(
            f"--config={path} is outside the project's folder, which is what the workers of {name} "
            "get; use one in it, such as configs/clm.py"
        )
    if engine.needs_image and job.image is None:
        raise UserError(f"{name} needs --image=NAME, a container image with the project in it")
    if not engine.needs_image and job.image is not None:
        raise UserError(f"--image is not used by {name}; leave it out")


def job_name(workdir: str) -> str:
    """Of the last part of a workdir, what every engine takes as a name."""
    last = workdir.rstrip("/").rpartition("/")[2].lower()
    name = re.sub(r"[^a-z0-9]+", "-", last)[:_LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"run-{name}".rstrip("-")


def check_config(config: Config) -> None:
    """Raises UserError for a config with which no worker could train."""
    from lm.experiment.validate import check  # which imports jax

    check(config)


def submit(job: Job, name: str, output: str | None = None, dry_run: bool = False) -> list[str]:
    """Writes the files that an engine takes for a job and submits them; lines that tell of it.

    Args:
      job: of `make_job`.
      name: of the engine.
      output: the folder for files; None: launch in the workdir where that is local, else here.
      dry_run: submit nothing, and tell what would.

    Raises:
      UserError: the engine's program is missing, or fails. The files are kept.
    """
    engine = ENGINES[name]
    folder = Path(output).expanduser() if output else _files_folder(job)
    submission = engine.prepare(job, folder)
    if output and not submission.files:
        raise UserError(f"--with={name} writes no files; leave out --output")
    lines = submission.text.splitlines()
    lines += [f"written: {path}" for path in _write(submission, folder)]
    commands = [shlex.join(command) for command in submission.commands]
    if dry_run:
        return lines + [f"submit by: {command}" for command in commands]
    if not commands:
        return lines
    if shutil.which(str(engine.tool)) is None:
        for line in lines:
            print(line, flush=True)
        raise UserError(
            f"{engine.tool} is not installed here ({engine.install}); it would run "
            + " && ".join(commands)
        )
    for line in lines:
        print(line, flush=True)
    for command in submission.commands:
        _run(command)
    return [f"afterwards: python run.py status --workdir={job.workdir}"]


def _files_folder(job: Job) -> Path:
    return Path("launch") if job.in_bucket else Path(job.workdir) / "launch"


def _write(submission: Submission, folder: Path) -> list[Path]:
    paths = [folder / name for name in submission.files]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, submission.files[path.name])
    return paths


def _run(command: Sequence[str]) -> None:
    """Runs a command of the engine, which says itself what it does."""
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(f"{shlex.join(command)} ended with status {status}; see its message above")
