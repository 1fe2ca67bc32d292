"""Queued resources of Cloud TPU, by hand: the commands that make a slice for each worker, start the
worker on all of its hosts and remove the slice. SkyPilot and GKE have taken their place.
"""

import shlex
from pathlib import Path

from lm.experiment.launch.job import Job, Submission

_FOLDER = "softmax-laboratory"
# Of each TPU, the type by which slices are asked for and the image of its hosts.
_TPUS = {
    "v4": ("v4", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", "v2-alpha-tpuv5"),
    "v6e": ("v6e", "v2-alpha-tpuv6e"),
    "tpu7x": ("tpu7x", "v2-alpha-tpu7-ubuntu2404"),
}
_TPU = "gcloud compute tpus"
_ARCHIVE = "project.tar.gz"


def prepare(job: Job, folder: Path) -> Submission:
    """A file with the commands, which are also printed, and the script of a worker. Slices come
    when there is room, so each step is taken by hand. The zone is that of `gcloud config set
    compute/zone`.
    """
    script, archive = folder / f"{job.name}.worker.sh", folder / _ARCHIVE
    names = job.worker_names
    tar = f"tar --create --gzip --null --files-from=- --file={archive}"
    steps = {
        "ask for the slices, and wait until each is ACTIVE": [
            *(_create(job, name) for name in names),
            *(f"{_TPU} queued-resources describe {n} --format='value(state.state)'" for n in names),
        ],
        "copy the project to every host, and start the workers": [
            f"git ls-files -z | {tar}",
            *(f"{_TPU} tpu-vm scp {archive} {script} {n}: --worker=all" for n in names),
            *(f"{_TPU} tpu-vm ssh {n} --worker=all --command={_start(script.name)}" for n in names),
        ],
        "remove them: afterwards, or to ask again for those that were preempted": [
            f"{_TPU} queued-resources delete {name} --force --quiet" for name in names
        ],
    }
    lines = []
    for number, (step, commands) in enumerate(steps.items(), start=1):
        lines += [f"# {number}. {step}", *commands]
    text = "\n".join(lines)
    file = f"{job.name}.gcloud.txt"
    return Submission(files={file: f"{text}\n", script.name: _worker(job)}, text=text)


def _create(job: Job, name: str) -> str:
    accelerator, _, number = job.slice.name.partition("-")
    kind, image = _TPUS[accelerator]
    spot = " --spot" if job.spot else ""
    return (
        f"{_TPU} queued-resources create {name} --node-id={name} "
        f"--accelerator-type={kind}-{number} --runtime-version={image}{spot}"
    )


def _start(script: str) -> str:
    return shlex.quote(f"nohup bash {script} > worker.log 2>&1 < /dev/null &")


def _worker(job: Job) -> str:
    """What every host runs, in its home folder."""
    lines = [
        "set -e",
        f"mkdir -p {_FOLDER}",
        f"tar --extract --file={_ARCHIVE} --directory={_FOLDER}",
        f"cd {_FOLDER}",
        job.install + job.command(".venv/bin/python"),
    ]
    return "\n".join(lines) + "\n"
