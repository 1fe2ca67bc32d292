"""A JobSet of Kubernetes for each worker, with one pod on each host of its slice, as xpk submits
them to clusters of GKE.
"""

import shlex
from pathlib import Path
from typing import Any

from lm.devices.slice_names import SliceSpec
from lm.experiment.launch.job import Job, Submission, host_flags
from lm.experiment.launch.yaml_text import to_yaml

# Of each accelerator, what GKE calls it.
_TPUS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
_GPUS = {
    "l4": "nvidia-l4",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
_RESTARTS = {False: 3, True: 100}  # without and with preemptions
_GRACE = 60  # seconds in which a pod that is to end saves its state
_TPU_PORTS = (8471, 8080)
_TPU_CHIPS = 4  # of a node in xpk's pools, at most; Cloud TPU has 8 in a host of v5e-8 and v6e-8
_NOT_OF_XPK = ("v5e-1", "v5e-4")
_JOB = "worker"


def prepare(job: Job, folder: Path) -> Submission:
    """A YAML file with a JobSet for each worker, and the same workloads as commands of xpk."""
    file = f"{job.name}.jobset.yaml"
    sets = [_jobset(job, name) for name in job.worker_names]
    files = {file: to_yaml(*sets)}
    if job.slice.kind == "tpu" and job.slice.name not in _NOT_OF_XPK:
        files[f"{job.name}.xpk.sh"] = _xpk(job)
    return Submission(files=files, commands=[["kubectl", "apply", "-f", str(folder / file)]])


def _jobset(job: Job, name: str) -> dict[str, Any]:
    """One worker: a job with a pod on each host. A pod that fails starts all of them again."""
    pods = _pods(job.slice)
    template = {
        "spec": {
            "parallelism": pods,
            "completions": pods,
            "backoffLimit": 0,
            "template": {"spec": _pod(job, name)},
        }
    }
    metadata: dict[str, Any] = {"name": name}
    if pods > 1 and job.slice.kind == "tpu":  # all pods of a worker are on the hosts of one slice
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": _RESTARTS[job.spot]},
            "replicatedJobs": [{"name": _JOB, "replicas": 1, "template": template}],
        },
    }


def _pods(slice_: SliceSpec) -> int:
    """How many pods a worker has: one for each node of its slice."""
    most = _TPU_CHIPS if slice_.kind == "tpu" else slice_.chips_per_host
    return max(1, slice_.chips // most)


def _pod(job: Job, name: str) -> dict[str, Any]:
    slice_, container = job.slice, _container(job, name)
    selector: dict[str, str] = {}
    if slice_.kind == "tpu":
        selector["cloud.google.com/gke-tpu-accelerator"] = _TPUS[slice_.accelerator]
        selector["cloud.google.com/gke-tpu-topology"] = slice_.topology
    elif slice_.kind == "gpu":
        selector["cloud.google.com/gke-accelerator"] = _GPUS[slice_.accelerator]
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": _GRACE}
    if job.spot:
        key = "cloud.google.com/gke-spot"
        selector[key] = "true"
        pod["tolerations"] = [
            {"key": key, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    return pod | {"nodeSelector": selector, "containers": [container]}


def _container(job: Job, name: str) -> dict[str, Any]:
    command = ["python", "run.py", *job.arguments]
    if job.hosts_need_flags:  # JobSet gives the first pod this name; Kubernetes puts in the index
        first = f"{name}-{_JOB}-0-0.{name}"
        command += host_flags(first, job.slice.hosts, "$(JOB_COMPLETION_INDEX)")
    container: dict[str, Any] = {"name": _JOB, "image": job.image, "command": command}
    number = job.slice.chips // _pods(job.slice)
    if job.slice.kind == "tpu":
        container["securityContext"] = {"privileged": True}
        container["ports"] = [{"containerPort": port, "protocol": "TCP"} for port in _TPU_PORTS]
        container["resources"] = {"limits": {"google.com/tpu": number}}
    elif job.slice.kind == "gpu":
        container["resources"] = {"limits": {"nvidia.com/gpu": number}}
    else:
        container["resources"] = {"requests": {"cpu": number}}
    return container


def _xpk(job: Job) -> str:
    accelerator, _, number = job.slice.name.partition("-")
    kind = {"v5e": "v5litepod"}.get(accelerator, accelerator)
    lines = [
        "#!/bin/bash",
        "# The same workloads on a cluster that xpk has made: CLUSTER=NAME bash THIS_FILE",
        "set -e",
    ]
    for name in job.worker_names:
        options = {
            "workload": name,
            "tpu-type": f"{kind}-{number}",
            "num-slices": 1,
            "max-restarts": _RESTARTS[job.spot],
            "docker-image": job.image,
            "command": job.command(),
        }
        given = " ".join(f"--{key}={shlex.quote(str(value))}" for key, value in options.items())
        lines.append(f'xpk workload create --cluster="${{CLUSTER:?}}" {given} "$@"')
    return "\n".join(lines) + "\n"
