"""A task of SkyPilot, submitted as a managed job for each worker: preempted ones are started again,
wherever there is room.
"""

from pathlib import Path
from typing import Any

from lm.experiment.launch.job import Job, Submission, host_flags
from lm.experiment.launch.yaml_text import to_yaml

# Of each TPU, what SkyPilot calls it and the image of its hosts.
_TPUS = {
    "v4": ("v4", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", "v2-alpha-tpuv5"),
    "v6e": ("v6e", "v2-alpha-tpuv6e"),
}
_GPUS = {"a100": "A100-80GB"}  # others are written in capitals
_RESTARTS = 3  # after errors of its own; preemptions are not counted


def prepare(job: Job, folder: Path) -> Submission:
    """A YAML file of a task, and a command for each worker."""
    task = {
        "name": job.name,
        "workdir": ".",
        "num_nodes": job.slice.hosts if job.hosts_need_flags else 1,
        "resources": _resources(job),
        "setup": job.install,
        "run": f"{_run(job)}\n",
    }
    file = f"{job.name}.yaml"
    launch = ["sky", "jobs", "launch", "--yes", "--detach-run"]
    commands = [[*launch, f"--name={name}", str(folder / file)] for name in job.worker_names]
    return Submission(files={file: to_yaml(task)}, commands=commands)


def _run(job: Job) -> str:
    command = job.command(".venv/bin/python")
    if not job.hosts_need_flags:
        return command
    first = '"$(echo "$SKYPILOT_NODE_IPS" | head -n1)"'
    return " ".join([command, *host_flags(first, "$SKYPILOT_NUM_NODES", "$SKYPILOT_NODE_RANK")])


def _resources(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = {}
    accelerator, _, number = job.slice.name.partition("-")
    if job.slice.kind == "tpu":
        name, image = _TPUS[accelerator]
        found["infra"] = "gcp"
        found["accelerators"] = f"tpu-{name}-{number}:1"
        found["accelerator_args"] = {"runtime_version": image}
    elif job.slice.kind == "gpu":
        name = _GPUS.get(accelerator, accelerator.upper())
        found["accelerators"] = f"{name}:{job.slice.chips_per_host}"
    else:
        found["cpus"] = f"{job.slice.chips}+"
    recovery = {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": _RESTARTS}
    return found | {"use_spot": job.spot, "job_recovery": recovery}
