"""Kills a run at random moments, starts it again until it is finished, and compares it bit by bit
with one that was not disturbed.

Command  python experiments/kills.py [--kills=50] [--seed=0] [--folder=DIR]
Writes   experiments/results/kills.json

A round is one workdir, which is killed once at each moment of `MOMENTS` and then finishes. SIGKILL
comes at a random time after its moment has come. What must be equal to the undisturbed run: every
number of metrics.jsonl and result.json that no clock gives, every bit of the last checkpoint (the
parameters, the optimizer's state, the step), and the names of the files, but for the claims of dead
processes, which hold nothing.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import jax
import numpy as np

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.layer_layout import named_leaves
from lm.experiment.provenance import commit, versions
from lm.experiment.status import run_statuses
from lm.training.metric_writer import read_metrics, untimed

STEPS = 120
SETTINGS = {
    "data.source": f"files:{ROOT}/lm/*/*.py",
    "data.seq_len": 32,
    "model.num_layers": 2,
    "model.d_model": 16,
    "model.num_heads": 2,
    "model.dropout": 0.1,
    "batch_size": 4,
    "steps": STEPS,
    "checkpoint.every": 10,
    "evaluation.every": 40,
    "evaluation.num_examples": 512,
    "log.every": 1,
}
PATIENCE = 300.0  # seconds for which a moment is waited for


class Place(NamedTuple):
    """The folders of a run, and what a killed process has left half done in them."""

    workdir: pathlib.Path
    cache: pathlib.Path
    left: frozenset[str] = frozenset()


def is_preparing(place: Place) -> bool:
    """Whether the corpus is being written."""
    return bool(partial_corpora(place) - place.left)


def is_saving(place: Place) -> bool:
    """Whether a checkpoint is being written."""
    return bool(partial_checkpoints(place) - place.left)


def partial_corpora(place: Place) -> set[str]:
    """The names of corpora that are half written."""
    return {path.name for path in place.cache.glob("data/*.partial-*")}


def partial_checkpoints(place: Place) -> set[str]:
    """The names of checkpoints that are half written."""
    return {path.name for path in place.workdir.glob("checkpoints/*tmp*")}


def logged(place: Place) -> int:
    """The last step of which a line is written."""
    records = read_metrics(place.workdir / "metrics.jsonl")
    return max((each["step"] for each in records), default=0)


def is_evaluating(place: Place) -> bool:
    """Whether training is over, and the last evaluation not yet written."""
    return logged(place) == STEPS


def is_ending(place: Place) -> bool:
    """Whether the last evaluation is written: the last checkpoint and result.json come next."""
    records = read_metrics(place.workdir / "metrics.jsonl")
    return any(each["step"] == STEPS and "eval/nats_per_token" in each for each in records)


def is_started(place: Place) -> bool:
    """Always."""
    return True


class Moment(NamedTuple):
    """When a run is killed: at most `delay` seconds after `has_come`."""

    has_come: Callable[[Place], bool]
    delay: float


def at_step(step: int) -> Callable[[Place], bool]:
    """Whether a step is logged."""
    return lambda place: logged(place) >= step


MOMENTS = {
    "preparation": Moment(is_preparing, 0.05),
    "start": Moment(is_started, 8.0),
    "training, first half": Moment(at_step(STEPS // 4), 0.1),
    "save": Moment(is_saving, 0.03),
    "training, second half": Moment(at_step(STEPS // 2), 0.1),
    "last evaluation": Moment(is_evaluating, 0.3),
    "last save and result": Moment(is_ending, 0.3),
}


def start(place: Place) -> subprocess.Popen[str]:
    """The run, on one device."""
    settings = SETTINGS | {"cache_dir": str(place.cache)}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = ["run.py", "train", "--config=configs/clm.py:tiny", f"--workdir={place.workdir}"]
    return subprocess.Popen(
        [sys.executable, *command, *flags],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_at(name: str, place: Place, rng: random.Random) -> dict[str, Any] | None:
    """Kills a run at a moment; what it had done. None where it was finished before."""
    place = place._replace(left=frozenset(partial_corpora(place) | partial_checkpoints(place)))
    process, moment, begun = start(place), MOMENTS[name], time.perf_counter()
    while process.poll() is None and not moment.has_come(place):
        if time.perf_counter() - begun > PATIENCE:
            break
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, moment.delay))
    ended = process.poll()
    process.kill()
    _, errors = process.communicate()
    if ended is not None:
        if ended:
            raise SystemExit(f"the run ended with status {ended}: {errors}")
        return None
    return {
        "moment": name,
        "seconds": round(time.perf_counter() - begun, 2),
        "logged": logged(place),
        "checkpoints": Checkpoints(place.workdir).steps,
        "half_written": sorted(partial_corpora(place) | partial_checkpoints(place)),
        "status": " ".join(each.state for each in run_statuses(place.workdir)),
    }


def finish(place: Place) -> None:
    """Runs to the end."""
    process = start(place)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run ended with status {process.returncode}: {errors}")


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """All that two runs must have in common."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = named_leaves(Checkpoints(workdir).load_raw(device))
    lines = read_metrics(workdir / "metrics.jsonl")
    result = json.loads((workdir / "result.json").read_text())
    return {
        "lines": [without_clock(line) for line in lines],
        "result": without_clock(result),
        "state": {name: np.asarray(array).tobytes() for name, array in state.items()},
        "checkpoints": Checkpoints(workdir).steps,
        "files": sorted(c.name for c in workdir.iterdir() if not c.name.startswith(".claim-")),
    }


def without_clock(record: dict[str, Any]) -> dict[str, Any]:
    """A record's numbers that no clock gives, and no measure of memory."""
    return {key: value for key, value in untimed(record).items() if key != "memory"}


def main() -> None:
    """Prints each kill, and writes all of them with what they changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    arguments = parser.parse_args()
    rng, kills, rounds, differing = random.Random(arguments.seed), [], 0, []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        whole = Place(folder / "undisturbed", folder / "cache")
        finish(whole)
        expected = outcome(whole.workdir)
        while len(kills) < arguments.kills:
            rounds += 1
            place = Place(folder / f"run-{rounds}", folder / "cache")
            shutil.rmtree(place.cache / "data")
            for moment in list(MOMENTS)[: arguments.kills - len(kills)]:
                killed = kill_at(moment, place, rng)
                if killed is not None:
                    kills.append({"round": rounds, **killed})
                    print(json.dumps(kills[-1]), flush=True)
            finish(place)
            found = outcome(place.workdir)
            wrong = [key for key in expected if found[key] != expected[key]]
            files = sorted(set(found["files"]) ^ set(expected["files"]))
            differing += [{"round": rounds, "differ": wrong, "files": files}] if wrong else []
            print(f"round {rounds}: {', '.join(wrong) or 'the same'}", flush=True)
            shutil.rmtree(place.workdir)
    result = {
        "device": "cpu",
        "commit": commit(),
        "versions": versions(),
        "settings": SETTINGS | {"data.source": "files:lm/*/*.py"},
        "kills": len(kills),
        "kills_by_moment": Counter(each["moment"] for each in kills),
        "rounds": rounds,
        "rounds_that_differ": differing,
        "each": kills,
    }
    path = ROOT / "experiments" / "results" / "kills.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(kills)} kills in {rounds} rounds, {len(differing)} of which differ")
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
