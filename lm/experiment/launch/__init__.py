"""Starts commands on clusters, by what SkyPilot, Kubernetes, Slurm and gcloud take."""

from lm.experiment.launch import gcloud, printed, sky, slurm, xpk
from lm.experiment.launch.engine import Engine

ENGINES = {
    "sky": Engine(
        sky.prepare, "sky", 'pip install "skypilot[gcp]", then sky check', lacks=("tpu7x",)
    ),
    "xpk": Engine(
        xpk.prepare,
        "kubectl",
        "gcloud components install kubectl, and a cluster with JobSet, such as xpk makes",
        needs_image=True,
    ),
    "slurm": Engine(
        slurm.prepare,
        "sbatch",
        "launch on a login node of the cluster",
        kinds=("gpu", "cpu"),
        remote=False,
        spot=False,
    ),
    "gcloud": Engine(gcloud.prepare, kinds=("tpu",)),
    "print": Engine(printed.prepare, remote=False),
}

__all__ = ["ENGINES", "Engine"]
