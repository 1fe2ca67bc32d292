"""An array of Slurm jobs, one for each worker, with a task on each host."""

import shlex
import sys
from pathlib import Path

from lm.experiment.launch.job import Job, Submission

# SIGTERM, which `scontrol requeue` sends to the tasks, makes a run save its state.
_BODY = """\
# Before its time limit the job saves its state and goes back into the queue, to go on later.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
{cpus}srun --kill-on-bad-exit=1 {command} &
wait $!
"""
_SECONDS_BEFORE = 120


def prepare(job: Job, folder: Path) -> Submission:
    """A script for sbatch, which takes the partition, the time limit and the account from SBATCH's
    own variables, such as SBATCH_PARTITION.
    """
    array = job.workers > 1
    options = {
        "job-name": job.name,
        "array": f"0-{job.workers - 1}" if array else None,
        "chdir": Path.cwd(),
        "nodes": job.slice.hosts,
        "ntasks-per-node": 1,
        "cpus-per-task": job.slice.chips if job.slice.kind == "cpu" else None,
        "gres": f"gpu:{job.slice.chips_per_host}" if job.slice.kind == "gpu" else None,
        "output": folder / f"{job.name}-{'%A_%a' if array else '%j'}.log",
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR1@{_SECONDS_BEFORE}",
    }
    lines = ["#!/bin/bash"]
    for name, value in options.items():
        if value is not None:
            lines.append(
                f"#SBATCH --{name}" + (f"={shlex.quote(str(value))}" if value != "" else "")
            )
    # Since Slurm 22.05 srun does not take this from sbatch.
    cpus = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"\n' if job.slice.kind == "cpu" else ""
    body = _BODY.format(cpus=cpus, command=job.command(sys.executable))
    file = f"{job.name}.sbatch"
    return Submission(
        files={file: "\n".join(lines) + "\n" + body}, commands=[["sbatch", str(folder / file)]]
    )
