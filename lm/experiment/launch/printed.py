"""Prints what each worker runs, for machines that are started by other means."""

from pathlib import Path

from lm.errors import counted
from lm.experiment.launch.job import Job, Submission


def prepare(job: Job, folder: Path) -> Submission:
    """A line of comment and the command for each worker; nothing is written or submitted."""
    hosts = job.slice.hosts
    where = f", on each of the {hosts} hosts of its slice" if hosts > 1 else ""
    lines = []
    for worker in range(job.workers):
        lines += [f"# worker {worker + 1} of {job.workers}{where}", job.command()]
    machine = f"{job.slice.name} ({_size(job)})"
    return Submission(text="\n".join([f"# {counted(job.workers, 'worker')} on {machine}", *lines]))


def _size(job: Job) -> str:
    unit = {"tpu": "chip", "gpu": "GPU", "cpu": "core"}[job.slice.kind]
    arranged = f" in {job.slice.topology}" if job.slice.topology else ""
    return f"{counted(job.slice.chips, unit)}{arranged}, {counted(job.slice.hosts, 'host')}"
