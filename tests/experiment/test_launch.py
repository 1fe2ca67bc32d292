"""What is launched: the files that each engine takes have the structure that it documents, and what
cannot be launched is one clear line.
"""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from etils import epath

from lm.devices.slice_names import find_slice
from lm.errors import UserError
from lm.experiment.launch import ENGINES
from lm.experiment.launch.command import Request, job_name, make_job, submit
from lm.experiment.launch.job import Job
from lm.experiment.run_dir import open_workdir
from tests.commands import ROOT, run

BUCKET = "gs://bucket/attention"
CONFIG = "--config=configs/attention.py:tiny"


def request(engine, **changes):
    given = {
        "engine": engine,
        "arguments": (CONFIG, "--config.steps=20"),
        "config": "configs/attention.py:tiny",
        "workdir": BUCKET,
        "on": "v5e-16",
        "workers": 2,
    }
    return Request(**(given | changes))


def files(engine, folder, **changes):
    """The texts that an engine writes, by their names."""
    job = make_job(request(engine, **changes))
    submit(job, engine, str(folder), dry_run=True)
    return {path.name: path.read_text() for path in folder.iterdir()}


WORKER = ["run.py", "sweep", CONFIG, "--config.steps=20", f"--workdir={BUCKET}", "--share"]


def test_print_has_a_command_for_each_worker():
    first, *lines = submit(make_job(request("print")), "print")
    assert first == "# 2 workers on v5e-16 (16 chips in 4x4, 4 hosts)"
    assert lines[0::2] == [
        f"# worker {n} of 2, on each of the 4 hosts of its slice" for n in (1, 2)
    ]
    assert [shlex.split(line) for line in lines[1::2]] == [["python", *WORKER]] * 2


def test_sky_is_given_a_task_of_one_slice_and_a_managed_job_for_each_worker(tmp_path):
    text = files("sky", tmp_path, spot=True)["attention.yaml"]
    task = yaml.safe_load(text)
    assert task["resources"] == {
        "infra": "gcp",
        "accelerators": "tpu-v5litepod-16:1",
        "accelerator_args": {"runtime_version": "v2-alpha-tpuv5-lite"},
        "use_spot": True,
        "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 3},
    }
    assert shlex.split(task["run"]) == [".venv/bin/python", *WORKER]
    assert "-e '.[tpu,bucket]'" in task["setup"]
    lines = submit(make_job(request("sky")), "sky", str(tmp_path), dry_run=True)
    assert [line.split()[-2] for line in lines[1:]] == ["--name=attention-0", "--name=attention-1"]


@pytest.mark.parametrize(
    ("on", "resources"),
    [
        ("h100-8", {"accelerators": "H100:8"}),
        ("cpu-8", {"cpus": "8+"}),
        ("a100-4", {"accelerators": "A100-80GB:4"}),
        ("v6e-8", {"accelerators": "tpu-v6e-8:1"}),
    ],
)
def test_sky_is_asked_for_gpus_and_cores_by_its_own_names(on, resources, tmp_path):
    task = yaml.safe_load(files("sky", tmp_path, on=on)["attention.yaml"])
    assert resources.items() <= task["resources"].items()


def test_kubernetes_is_given_a_jobset_for_each_worker_with_a_pod_on_each_host(tmp_path):
    found = files("xpk", tmp_path, image="lab:1", spot=True)
    sets = list(yaml.safe_load_all(found["attention.jobset.yaml"]))
    assert [each["metadata"]["name"] for each in sets] == ["attention-0", "attention-1"]
    assert {each["apiVersion"] for each in sets} == {"jobset.x-k8s.io/v1alpha2"}
    (job,) = sets[0]["spec"]["replicatedJobs"]
    assert job["replicas"] == 1
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"] == ["python", *WORKER]
    assert container["image"] == "lab:1"
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}


@pytest.mark.parametrize(
    ("on", "resources"),
    [
        ("h100-8", {"limits": {"nvidia.com/gpu": 8}}),
        ("cpu-8", {"requests": {"cpu": 8}}),
        ("v6e-4", {"limits": {"google.com/tpu": 4}}),
    ],
)
def test_a_worker_of_one_host_is_one_pod(on, resources, tmp_path):
    text = files("xpk", tmp_path, on=on, image="lab:1")["attention.jobset.yaml"]
    first = next(yaml.safe_load_all(text))
    spec = first["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["completions"] == 1 and "annotations" not in first["metadata"]
    assert spec["template"]["spec"]["containers"][0]["resources"] == resources


MEETING = "--num_processes=2 --process_id="


def test_hosts_of_gpus_are_told_where_they_meet(tmp_path):
    changes = {"on": "h100-16", "workers": 1}
    lines = submit(make_job(request("print", **changes)), "print")
    assert [line.partition(" --coordinator=")[2] for line in lines[2:]] == [
        f"HOST1:12345 {MEETING}0",
        f"HOST1:12345 {MEETING}1",
    ]
    task = yaml.safe_load(files("sky", tmp_path / "sky", **changes)["attention.yaml"])
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8"
    environment = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    script = task["run"].replace(".venv/bin/python", "echo")
    shown = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"--coordinator=10.0.0.1:12345 {MEETING}1" in shown.stdout
    text = files("xpk", tmp_path / "xpk", image="lab:1", **changes)["attention.jobset.yaml"]
    spec = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["completions"] == 2
    assert spec["template"]["spec"]["containers"][0]["command"][-3:] == [
        "--coordinator=attention-worker-0-0.attention:12345",
        "--num_processes=2",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


def options(script):
    """The options of sbatch in a script."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))


def test_slurm_is_given_an_array_with_a_task_on_each_host(tmp_path):
    script = files("slurm", tmp_path, on="h100-16", workdir="runs/attention")["attention.sbatch"]
    given = options(script)
    assert given["array"] == "0-1" and given["nodes"] == "2" and given["ntasks-per-node"] == "1"
    assert given["gres"] == "gpu:8" and given["requeue"] == "" and given["chdir"] == str(Path.cwd())
    assert given["output"] == str(tmp_path / "attention-%A_%a.log")
    (line,) = [line for line in script.splitlines() if line.startswith("srun ")]
    command = shlex.split(line)
    assert command[3:-1] == [*WORKER[:4], "--workdir=runs/attention", "--share"]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_slurm_gives_a_worker_of_cpus_its_cores(tmp_path):
    script = files("slurm", tmp_path, on="cpu-4", workers=1)["attention.sbatch"]
    assert options(script)["cpus-per-task"] == "4" and "array" not in options(script)
    assert 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"' in script


def test_gcloud_is_told_in_commands_that_a_shell_understands(tmp_path):
    found = files("gcloud", tmp_path, spot=True)
    text, worker = found["attention.gcloud.txt"], found["attention.worker.sh"]
    commands = [line for line in text.splitlines() if line.startswith("gcloud ")]
    assert sum(" create " in line and "--spot" in line for line in commands) == 2
    assert "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite" in text
    assert shlex.split(worker.splitlines()[-1]) == [".venv/bin/python", *WORKER]
    for script in (text, worker):
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


ONE_OF_EACH = ("v4-8", "v5e-1", "v5p-16", "v6e-16", "tpu7x-16", "l4-1", "a100-8", "h200-8", "cpu-2")


@pytest.mark.parametrize("on", ONE_OF_EACH)
def test_every_engine_has_a_name_for_every_machine_that_it_takes(on, tmp_path):
    job = Job("name", ("train",), BUCKET, find_slice(on), image="lab:1")
    able = [engine for engine in ENGINES.values() if engine.takes(job.slice)]
    assert len([engine.prepare(job, tmp_path) for engine in able]) >= 3


def test_files_are_in_a_local_workdir_and_a_run_may_begin_there(tmp_path, small_config):
    workdir = tmp_path / "run"
    job = make_job(
        request("slurm", on="cpu-1", workdir=str(workdir), config="configs/clm.py", workers=1)
    )
    assert job.arguments[0] == "train"
    submit(job, "slurm", dry_run=True)
    assert [path.name for path in (workdir / "launch").iterdir()] == ["run.sbatch"]
    assert open_workdir(small_config, epath.Path(workdir)) is None


@pytest.mark.parametrize(
    ("workdir", "name"),
    [
        ("gs://b/Attention_1/", "attention-1"),
        ("runs/4 heads", "run-4-heads"),
        ("/", "run"),
        ("x" * 90, "x" * 40),
    ],
)
def test_a_job_has_a_name_that_every_engine_takes(workdir, name):
    assert job_name(workdir) == name


IMPOSSIBLE = {
    "an engine that is none": ({"engine": "skypilot"}, "--with=skypilot is not one of sky, xpk"),
    "a slice that is none": ({"on": "v5e-17"}, "--on=v5e-17 is no slice of Cloud TPU; use v5e-1,"),
    "a local workdir": (
        {"workdir": "runs/x"},
        "runs/x is a folder of this machine, which the workers",
    ),
    "spot machines of slurm": (
        {"engine": "slurm", "on": "cpu-8", "spot": True},
        "--spot is not known to slurm; leave it out",
    ),
    "a TPU of slurm": (
        {"engine": "slurm"},
        "--on=v5e-16 is no machine of --with=slurm; use sky, xpk, gcloud, print",
    ),
    "a GPU of gcloud": ({"engine": "gcloud", "on": "h100-8"}, "use sky, xpk, slurm, print"),
    "a TPU that SkyPilot does not know": ({"on": "tpu7x-8"}, "--with=sky; use xpk, gcloud, print"),
    "no image": ({"engine": "xpk"}, "xpk needs --image=NAME, a container image"),
    "an image for none": ({"image": "lab:1"}, "--image is not used by sky"),
    "several workers of one run": (
        {"config": "configs/clm.py"},
        "--workers=2 share the points of a sweep, and train has one run",
    ),
    "a sweep without rows": (
        {"config": "configs/clm.py", "command": "table"},
        "--command=table, but configs/clm.py has no sweep()",
    ),
    "a command that is none": ({"command": "evaluate"}, "--command=evaluate is not one of train"),
    "seeds of one run": (
        {"command": "train", "workers": 1, "arguments": ("--seeds=2",)},
        "--seeds=2 is of sweep and table; leave it out, or set config keys, such as --config.seed",
    ),
    "a config that workers do not have": (
        {"config": str(ROOT / "configs" / "attention.py")},
        "is outside the project's folder, which is what the workers of sky get; use one in it",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_launched_is_one_line(case):
    changes, message = IMPOSSIBLE[case]
    with pytest.raises(UserError) as error:
        make_job(request(**({"engine": "sky"} | changes)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_the_project_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("def sweep(arg):\n    yield {}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"workers run run\.py: launch in its folder"):
        make_job(request("print", config="own.py"))


def arguments(folder, *more):
    return [
        "launch",
        CONFIG,
        f"--workdir={folder / 'work'}",
        "--on=cpu-1",
        "--with=slurm",
        "--workers=2",
        *more,
    ]


def test_a_missing_program_is_one_line_with_what_it_would_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    job = make_job(request("slurm", on="cpu-1", workdir=str(tmp_path / "w")))
    with pytest.raises(UserError, match=r"sbatch is not installed here .* it would run sbatch "):
        submit(job, "slurm")
    assert (tmp_path / "w" / "launch" / "w.sbatch").exists()


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A program of this name that notes what it was given."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\nexit ${{SBATCH_STATUS:-0}}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "given"


def test_files_are_submitted_by_the_program_of_the_engine(sbatch, tmp_path, monkeypatch):
    job = make_job(request("slurm", on="cpu-1", workdir=str(tmp_path / "w")))
    assert submit(job, "slurm") == [f"afterwards: python run.py status --workdir={tmp_path / 'w'}"]
    assert sbatch.read_text() == f"{tmp_path / 'w' / 'launch' / 'w.sbatch'}\n"
    monkeypatch.setenv("SBATCH_STATUS", "1")
    with pytest.raises(UserError, match=r"sbatch .* ended with status 1; see its message above"):
        submit(job, "slurm")


def test_the_command_passes_on_config_keys_and_seeds_and_checks_them_first(tmp_path):
    given = ["--config.steps=30", "--seeds=2", "--vary", "model.bias=true,false", "--dry_run"]
    finished = run(*arguments(tmp_path, *given))
    assert finished.returncode == 0, finished.stderr
    script = (tmp_path / "work" / "launch" / "work.sbatch").read_text()
    assert (
        f"run.py sweep {CONFIG} --config.steps=30 --seeds=2 --vary=model.bias=true,false --workdir="
        in script
    )
    wrong = run(*arguments(tmp_path, "--config.model.num_heads=3"))
    assert wrong.returncode == 2 and "is not divisible by config.model.num_heads" in wrong.stderr
    missing = run("launch", CONFIG, "--workdir=gs://b/x")
    assert missing.returncode == 2 and "and --on=SLICE" in missing.stderr
