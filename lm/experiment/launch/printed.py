"""Prints what each worker runs, for machines that are started by other means."""

from pathlib import Path

from lm.errors import counted
from lm.experiment.launch.job import Job, Submission, host_flags


def prepare(job: Job, folder: Path) -> Submission:
    """A line of comment and the command for each worker; nothing is written or submitted."""
    hosts, lines = job.slice.hosts, []
    for worker in range(1, job.workers + 1):
        who = f"# worker {worker} of {job.workers}"
        if job.hosts_need_flags:
            flags = [host_flags(f"HOST{worker}", hosts, number) for number in range(hosts)]
            lines.append(f"{who}, on each of {hosts} hosts, of which HOST{worker} is the first")
            lines += [job.command("python", *each) for each in flags]
        else:
            where = f", on each of the {hosts} hosts of its slice" if hosts > 1 else ""
            lines += [f"{who}{where}", job.command()]
    machine = f"{job.slice.name} ({_size(job)})"
    return Submission(text="\n".join([f"# {counted(job.workers, 'worker')} on {machine}", *lines]))


def _size(job: Job) -> str:
    unit = {"tpu": "chip", "gpu": "GPU", "cpu": "core"}[job.slice.kind]
    arranged = f" in {job.slice.topology}" if job.slice.topology else ""
    return f"{counted(job.slice.chips, unit)}{arranged}, {counted(job.slice.hosts, 'host')}"
