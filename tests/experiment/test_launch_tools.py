"""What is launched is read by the engines' own programs, each of which must be installed: -m slow.

SkyPilot by pip install "skypilot[gcp]", xpk by pip install xpk, JobSet's schema by pip install
kubeflow-trainer-api, Slurm by the package slurm-wlm, with slurmctld and slurmd running.
"""

import importlib.util
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from lm.devices.slice_names import SLICES, find_slice
from lm.experiment.launch import ENGINES
from lm.experiment.launch.job import Job
from lm.experiment.status import run_statuses
from tests.commands import ROOT, run

pytestmark = pytest.mark.slow
MACHINES = ("v4-8", "v5e-8", "v5e-16", "v5p-128", "v6e-8", "tpu7x-8", "h100-8", "cpu-8")


def write(engine, folder, on, workers=2, spot=False):
    """The path of the first file that an engine writes for a worker on this machine."""
    arguments = ("sweep", "--config=configs/attention.py:tiny", "--workdir=gs://b/a", "--share")
    job = Job("attention", arguments, "gs://b/a", find_slice(on), workers, spot, "lab:1")
    for name, text in ENGINES[engine].prepare(job, folder).files.items():
        (folder / name).write_text(text)
    return next(folder.glob("attention.*"))


def outcome(*command, **options):
    finished = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("on", [n for n in MACHINES if ENGINES["sky"].takes(SLICES[n])])
def test_skypilot_reads_its_task(on, spot, tmp_path):
    if importlib.util.find_spec("sky") is None:
        pytest.skip('needs SkyPilot: pip install "skypilot[gcp]"')
    path = write("sky", tmp_path, on, spot=spot)
    code = (
        "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); print(task.num_nodes); "
        "print(*[each.use_spot for each in task.resources])"
    )
    told = outcome(sys.executable, "-c", code, str(path), cwd=ROOT)
    assert told.split()[-1] == str(spot)


@pytest.mark.parametrize("on", MACHINES)
def test_a_jobset_has_the_fields_of_its_schema_alone(on, tmp_path):
    api = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api"
    )
    write("xpk", tmp_path, on, spot=True)
    for given in yaml.safe_load_all((tmp_path / "attention.jobset.yaml").read_text()):
        assert api.JobsetV1alpha2JobSet.from_dict(given).to_dict() == given


@pytest.mark.parametrize("on", [each for each in MACHINES if SLICES[each].kind == "tpu"])
def test_xpk_makes_the_same_jobset_of_its_command(on, tmp_path):
    if shutil.which("xpk") is None:
        pytest.skip("needs xpk: pip install xpk")
    write("xpk", tmp_path, on, workers=1)
    script, manifest = tmp_path / "attention.xpk.sh", tmp_path / "theirs.yaml"
    options = ["--dry-run", "--skip-validation", "--project=p", "--zone=us-central1-a"]
    outcome("env", "CLUSTER=c", "bash", script, *options, f"--output-manifest-file={manifest}")
    ours, theirs = (
        next(yaml.safe_load_all(path.read_text()))["spec"]["replicatedJobs"][0]["template"]["spec"]
        for path in (tmp_path / "attention.jobset.yaml", manifest)
    )
    for key in ("parallelism", "completions", "backoffLimit"):
        assert ours[key] == theirs[key], key
    pods = [each["template"]["spec"] for each in (ours, theirs)]
    assert pods[0]["nodeSelector"].items() <= pods[1]["nodeSelector"].items()
    assert (
        len({each["containers"][0]["resources"]["limits"]["google.com/tpu"] for each in pods}) == 1
    )


def test_xpk_has_the_same_topology_pods_and_chips_for_every_slice():
    known = pytest.importorskip("xpk.core.system_characteristics", reason="pip install xpk")
    for each in SLICES.values():
        name = each.name.replace("v5e", "v5litepod")
        if each.kind == "tpu" and each.name not in ("v5e-1", "v5e-4"):
            theirs = known.UserFacingNameToSystemCharacteristics[name]
            assert theirs.topology == each.topology
            assert theirs.vms_per_slice * theirs.chips_per_vm == each.chips


def needs_slurm():
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        pytest.skip("needs Slurm: apt-get install slurm-wlm")
    if subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode:
        pytest.skip("needs a Slurm that runs: slurmctld and slurmd")


def test_sbatch_takes_its_script(tmp_path):
    needs_slurm()
    outcome("sbatch", "--test-only", str(write("slurm", tmp_path, "cpu-1")))


def test_slurm_trains_the_points_of_a_sweep_by_two_workers(tmp_path, corpus_folder, cache):
    needs_slurm()
    (tmp_path / "two.py").write_text(
        "from configs import clm\n\nSEEDS = (0,)\n\n\n"
        "def get_config(arg=None):\n    return clm.get_config('tiny')\n\n\n"
        "def sweep(arg=None):\n    yield {'attention.weighting': 'softmax'}\n"
        "    yield {'attention.weighting': 'sparsemax'}\n"
    )
    folder = tmp_path / "sweep"
    settings = {
        "cache_dir": cache,
        "data.source": f"files:{corpus_folder}/*.txt",
        "data.validation_fraction": 0.2,
        "data.seq_len": 32,
        "steps": 20,
        "schedule.warmup_steps": 1,
        "evaluation.num_examples": 16,
        "log.trackers": (),
    }
    launched = run(
        "launch",
        f"--config={tmp_path / 'two.py'}",
        f"--workdir={folder}",
        "--on=cpu-1",
        "--workers=2",
        "--with=slurm",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    )
    assert launched.returncode == 0, launched.stderr
    for _ in range(300):
        if not outcome("squeue", "--noheader", "--name=sweep"):
            break
        time.sleep(1)
    logs = "".join(path.read_text() for path in (folder / "launch").glob("*.log"))
    assert [each.state for each in run_statuses(folder)] == ["finished"] * 2, logs
