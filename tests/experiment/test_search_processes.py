"""Two processes search on one study, of which one is killed."""

import os
import signal
import subprocess
import sys

import pytest
from etils import epath

pytest.importorskip("optuna")

from lm.experiment.attempts import read_attempts
from tests.commands import ROOT, until

COMMAND = [
    *(sys.executable, "run.py", "sweep", "--config=configs/clm.py:tiny", "--search=optuna"),
    *("--draw=optimizer.learning_rate=log:1e-4:3e-2", "--trials=4", "--seeds=2"),
    *("--config.steps=60", "--config.batch_size=4", "--config.data.seq_len=64"),
    *("--config.model.num_layers=1", "--config.model.d_model=32", "--config.model.num_heads=2"),
    *("--config.schedule.warmup_steps=4", "--config.evaluation.num_examples=16"),
    *("--config.evaluation.every=0", "--config.log.trackers=()", "--config.log.every=20"),
]


def progress(folder):
    """The lines of all runs in a folder."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*/metrics.jsonl"))


def all_run(workers):
    return all(worker.poll() is None for worker in workers)


@pytest.mark.slow
def test_two_processes_on_one_study_train_every_trial_once_though_one_is_killed(tmp_path, cache):
    command = [*COMMAND, f"--workdir={tmp_path / 'w'}", f"--config.cache_dir={cache}"]
    folder = epath.Path(tmp_path / "w")
    # Of one device each, and not of the tests' eight.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    workers = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(2)]
    until(lambda: progress(folder) >= 2 or not all_run(workers), seconds=600)
    assert all_run(workers)
    held = [path.parent for path in folder.glob("*/.claim-*")]
    workers[0].send_signal(signal.SIGKILL)
    assert workers[1].wait() == 0
    workers[0].wait()
    runs = {path.parent.name: read_attempts(path.parent) for path in folder.glob("*/result.json")}
    for attempts in runs.values():
        assert [each.get("how") for each in attempts].count("finished") == 1
        assert len(attempts) <= 2
    taken = [name for name, attempts in runs.items() if attempts[-1]["took_over"]]
    assert len(taken) == 1 and taken[0] in {path.name for path in held}
    assert runs[taken[0]][-1]["took_over"]["pid"] == workers[0].pid
    again = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert again.stdout.startswith("4 trials: ") and "failed" not in again.stdout
    assert {path.parent.name for path in folder.glob("*/result.json")} == runs.keys()
