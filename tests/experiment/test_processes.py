"""A run of several processes, each with devices of its own."""

import os
import socket
import subprocess
import sys

import pytest

from lm.training.metric_writer import read_metrics
from tests.commands import ROOT
from tests.conftest import QUICK

PROCESS = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import run
sys.exit(run.main(["run.py", *sys.argv[3:]]))
"""


def together(*arguments):
    """The command in two processes on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    one = os.environ | {"XLA_FLAGS": QUICK}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, number, *arguments], cwd=ROOT, env=one, **pipes
        )
        for number in "01"
    ]
    return [(*process.communicate(timeout=300), process.returncode) for process in processes]


@pytest.mark.slow
def test_all_processes_of_a_run_end_with_its_result(corpus_folder, cache, tmp_path):
    arguments = [
        "train",
        "--config=configs/clm.py:tiny",
        f"--workdir={tmp_path / 'run'}",
        f"--config.cache_dir={cache}",
        f"--config.data.source=files:{corpus_folder}/*.txt",
        "--config.data.validation_fraction=0.2",
        "--config.data.seq_len=32",
        "--config.model.num_layers=1",
        "--config.model.d_model=16",
        "--config.steps=6",
        "--config.schedule.warmup_steps=1",
        "--config.checkpoint.every=3",
        "--config.evaluation.num_examples=16",
        "--config.log.tensorboard=False",
    ]
    for told in ("eval: ", "is finished already"):
        first, second = together(*arguments)
        for out, err, status in (first, second):
            assert status == 0, err
            assert told in out
        assert first[0].splitlines()[-1].split(",")[:2] == second[0].splitlines()[-1].split(",")[:2]
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["step"] == 6
