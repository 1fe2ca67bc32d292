"""Kills two of the workers of a sweep at random moments, and compares what they leave with a sweep
that was not disturbed.

Command  python experiments/sweep_workers.py [--ways=workers,ray,slurm] [--seed=0] [--folder=DIR]
Writes   experiments/results/sweep_workers.json

24 points are trained by four workers: commands of this machine, two of which get SIGKILL; tasks of
a Ray cluster of two nodes, one of which is killed (needs the extra sweep); an array of four Slurm
jobs, of which one is requeued, and one has all its processes killed and is then requeued (needs a
Slurm that runs).

Afterwards the attempts logs must say that each point was trained once to its end, that who took
over named a process that had ended, and that no two attempts met; and every number of each point
that no clock gives, and of the table, must be that of the undisturbed sweep.
"""

import argparse
import contextlib
import csv
import importlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from lm.experiment.attempts import read_attempts
from lm.experiment.provenance import commit, versions
from lm.experiment.status import run_statuses
from lm.training.metric_writer import read_metrics, untimed

WORKERS = 4
POINTS = 24
STEPS = 200
CONFIG = '''"""Three rows of eight seeds, a few seconds each."""

from configs import clm

SEEDS = tuple(range(8))


def get_config(arg=None):
    return clm.get_config("tiny")


def sweep(arg=None):
    yield {"attention.weighting": "softmax"}
    yield {"attention.weighting": "sigmoid"}
    yield {"attention.weighting": "off_by_one"}
'''
SETTINGS = {
    "data.source": f"files:{ROOT}/lm/*/*.py",
    "data.seq_len": 32,
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 2,
    "batch_size": 4,
    "steps": STEPS,
    "schedule.warmup_steps": 10,
    "checkpoint.every": 20,
    "evaluation.every": 0,
    "evaluation.num_examples": 64,
    "log.every": 20,
}
PATIENCE = 3600.0  # seconds for which something is waited for


class Sweep:
    """The sweep in one folder, and how it is trained there."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.workdir = folder / name
        config = folder / "points.py"
        config.write_text(CONFIG)
        settings = SETTINGS | {"cache_dir": str(folder / "cache")}
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        self.flags = [f"--config={config}", f"--workdir={self.workdir}", *flags]

    def command(self, *flags: str) -> list[str]:
        """A command of run.py with the flags of this sweep."""
        return [sys.executable, "run.py", flags[0], *self.flags, *flags[1:]]

    def start(self, *flags: str, core: int | None = None) -> subprocess.Popen[str]:
        """Starts a command, on one core where it is named."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, before if core is None else {core})  # is inherited
        log = (self.workdir.parent / f"{self.workdir.name}.log").open("a")
        try:
            return subprocess.Popen(
                self.command(*flags), cwd=ROOT, env=environment(), stdout=log, stderr=log, text=True
            )
        finally:
            os.sched_setaffinity(0, before)

    @property
    def finished(self) -> int:
        """How many points are finished."""
        states = (each.state for each in run_statuses(self.workdir))
        return sum(state == "finished" for state in states)

    def folders(self) -> list[pathlib.Path]:
        """Those of the points."""
        return sorted(path.parent for path in self.workdir.glob("*/attempts.jsonl"))


def environment() -> dict[str, str]:
    """Of each command: one thread of one device of this machine's processor."""
    return os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "NPROC": "1"}


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Looks twice a second."""
    begun = time.monotonic()
    while not is_so():
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit(f"waited {PATIENCE:.0f} s until {what}")
        time.sleep(0.5)


def moments(rng: random.Random, number: int) -> list[tuple[int, float]]:
    """When something is killed: so many seconds after so many points are finished."""
    after = sorted(rng.sample(range(1, POINTS - WORKERS), number))
    return [(count, rng.uniform(0.0, 4.0)) for count in after]


def by_workers(sweep: Sweep, rng: random.Random) -> dict[str, Any]:
    """Four commands of this machine, two of which are killed."""
    cores = sorted(os.sched_getaffinity(0))
    left = [sweep.start("sweep", "--share", core=cores[i % len(cores)]) for i in range(WORKERS)]
    killed = []
    for count, delay in moments(rng, 2):
        wait_until(lambda count=count: sweep.finished >= count, f"{count} points are finished")
        time.sleep(delay)
        victim = left.pop(rng.randrange(len(left)))
        victim.kill()
        victim.wait()
        killed.append({"pid": victim.pid, "finished": sweep.finished})
    statuses = [each.wait() for each in left]
    return {"killed": killed, "statuses": statuses}


def by_ray(sweep: Sweep, rng: random.Random) -> dict[str, Any]:
    """Tasks of a cluster of two nodes of two cores, of which one is killed."""
    os.environ |= environment()  # for the nodes
    cluster_utils = importlib.import_module("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        node = cluster.add_node(num_cpus=2)
        os.environ["RAY_ADDRESS"] = cluster.address
        driver = sweep.start("sweep", "--executor=ray")
        ((count, delay),) = moments(rng, 1)
        wait_until(lambda: sweep.finished >= count, f"{count} points are finished")
        time.sleep(delay)
        running = [each.name for each in run_statuses(sweep.workdir) if each.state == "running"]
        cluster.remove_node(node, allow_graceful=False)
        killed = {"node": 2, "finished": sweep.finished, "running": running}
        return {"killed": [killed], "statuses": [driver.wait()]}
    finally:
        cluster.shutdown()


def by_slurm(sweep: Sweep, rng: random.Random) -> dict[str, Any]:
    """An array of four jobs, of which one is requeued, and one is killed and then requeued."""
    name = sweep.workdir.name
    flags = ("--with=slurm", "--on=cpu-1", f"--workers={WORKERS}")
    if sweep.start("launch", *flags).wait():
        raise SystemExit((sweep.workdir.parent / f"{name}.log").read_text())
    (first, after), (second, later) = moments(rng, 2)
    wait_until(lambda: sweep.finished >= first, f"{first} points are finished")
    time.sleep(after)
    requeued, killed = rng.sample(jobs(name, "--states=RUNNING"), 2)
    slurm("scontrol", "requeue", requeued)
    wait_until(lambda: sweep.finished >= second, f"{second} points are finished")
    time.sleep(later)
    number, node = slurm("squeue", "--noheader", f"--jobs={killed}", "--format=%A %N").split()
    for line in slurm("scontrol", "listpids", number, node).splitlines()[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    wait_until(lambda: killed not in jobs(name, "--states=RUNNING"), f"{killed} has ended")
    slurm("scontrol", "requeue", killed)
    wait_until(lambda: not jobs(name), "all jobs have ended")
    return {"killed": [{"requeued": requeued}, {"killed": killed}]}


def jobs(name: str, *flags: str) -> list[str]:
    """The jobs of this name that wait or run, each of an array on its own."""
    return slurm("squeue", "--noheader", "--array", f"--name={name}", "--format=%i", *flags).split()


def slurm(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


WAYS: dict[str, Callable[[Sweep, random.Random], dict[str, Any]]] = {
    "workers": by_workers,
    "ray": by_ray,
    "slurm": by_slurm,
}


def problems(sweep: Sweep, undisturbed: Sweep) -> list[str]:
    """What must not be: in the attempts of all points, and in their numbers."""
    found = []
    names = [path.name for path in sweep.folders()]
    if names != [path.name for path in undisturbed.folders()] or len(names) != POINTS:
        found.append(f"{len(names)} points were trained")
    for folder in sweep.folders():
        found += [f"{folder.name}: {each}" for each in problems_of_attempts(folder)]
        if outcome(folder) != outcome(undisturbed.workdir / folder.name):
            found.append(f"{folder.name}: other numbers")
    if table(sweep) != table(undisturbed):
        found.append("another table")
    return found


def problems_of_attempts(folder: pathlib.Path) -> list[str]:
    """What is wrong with those at one point."""
    attempts = read_attempts(folder)
    ways = [each.get("how") for each in attempts]
    found = [] if ways.count("finished") == 1 == ways[::-1].index("finished") + 1 else [f"{ways}"]
    for before, after in itertools.pairwise(attempts):
        if "ended" in before:
            apart = before["ended"] <= after["began"]
        else:  # whose process had ended, as a claim of the same machine is taken over only then
            apart = after["took_over"] == {"host": before["host"], "pid": before["pid"]}
        if not apart:
            found.append(f"two at once: {before} and {after}")
    steps = [record["step"] for record in read_metrics(folder / "metrics.jsonl")]
    if steps[-1:] != [STEPS] or sorted(steps) != steps:
        found.append(f"steps {steps}")
    return found


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """The numbers of a point that no clock gives, and no measure of memory."""
    result = json.loads((folder / "result.json").read_text())
    lines = [untimed(record) for record in read_metrics(folder / "metrics.jsonl")]
    others = ("memory", "commit")
    return {"lines": lines, **{k: v for k, v in untimed(result).items() if k not in others}}


def table(sweep: Sweep) -> list[dict[str, str]]:
    """The rows of its table.csv, without what a clock gives, and where they are."""
    finished = subprocess.run(
        sweep.command("table"), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    if finished.returncode:
        raise SystemExit(finished.stderr)
    with (sweep.workdir / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    others = ("workdirs", "tokens_per_second", "memory", "seconds")
    return [{key: value for key, value in row.items() if key not in others} for row in rows]


def attempts_of(sweep: Sweep) -> dict[str, int]:
    """How many points had how many attempts."""
    return dict(Counter(str(len(read_attempts(folder))) for folder in sweep.folders()))


def main() -> None:
    """Prints what each way came to, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    arguments = parser.parse_args()
    path = ROOT / "experiments" / "results" / "sweep_workers.json"
    results: dict[str, Any] = json.loads(path.read_text())["ways"] if path.exists() else {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        undisturbed = Sweep(folder, "undisturbed")
        cores = len(os.sched_getaffinity(0))
        if undisturbed.start("sweep", f"--jobs={min(WORKERS, cores)}").wait():
            raise SystemExit((folder / "undisturbed.log").read_text())
        wrong = []
        for way in arguments.ways.split(","):
            sweep, begun = Sweep(folder, way), time.monotonic()
            done = WAYS[way](sweep, random.Random(arguments.seed))
            log = (folder / f"{way}.log").read_text() if (folder / f"{way}.log").exists() else ""
            if sweep.finished != POINTS:
                raise SystemExit(log)
            found = problems(sweep, undisturbed)
            wrong += found
            taken = [
                {"point": each.name, **attempt}
                for each in sweep.folders()
                for attempt in read_attempts(each)[1:]
            ]
            results[way] = {
                **done,
                "seconds": round(time.monotonic() - begun),
                "points_by_attempts": attempts_of(sweep),
                "later_attempts": taken,
                "problems": found,
                "commit": commit(),
            }
            print(json.dumps({way: results[way]}, indent=1), flush=True)
    result = {"device": "cpu", "versions": versions(), "points": POINTS, "ways": results}
    path.write_text(json.dumps(result, indent=1) + "\n")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
