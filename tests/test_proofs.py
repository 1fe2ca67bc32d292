"""Proofs that take minutes: python -m pytest -m slow"""

import pathlib
import random
import subprocess
import sys
import time

import pytest

from lm.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_killed_three_times_ends_with_the_losses_of_an_uninterrupted_one(
    tmp_path, cache, losses
):
    command = [
        "train",
        "--config=configs/attention.py:tiny",
        f"--config.cache={cache}",
        "--config.checkpoint.every=20",
        "--config.log.every=1",
    ]
    whole = start(*command, f"--workdir={tmp_path / 'whole'}")
    assert whole.wait() == 0
    seconds = read_metrics(tmp_path / "whole" / "metrics.jsonl")[-1]["seconds"]
    killed = 0
    rng = random.Random(time.time_ns())
    while True:
        process = start(*command, f"--workdir={tmp_path / 'killed'}")
        if killed == 3:
            assert process.wait() == 0
            break
        time.sleep(2 + rng.uniform(0, seconds / 3))
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_tiny_reaches_2_6_bits_per_byte_and_writes_recognisable_python(tmp_path, cache):
    workdir = f"--workdir={tmp_path / 'clm'}"
    training = start("train", "--config=configs/clm.py:tiny", f"--config.cache={cache}", workdir)
    _, errors = training.communicate()
    assert training.returncode == 0, errors
    records = read_metrics(tmp_path / "clm" / "metrics.jsonl")
    assert records[-1]["eval/bits_per_byte"] < 2.6
    prompt = "class Reader:\n    def __init__(self, "
    generation = start("generate", workdir, f"--prompt={prompt}", "--tokens=250", "--top_p=0.9")
    text, errors = generation.communicate()
    assert generation.returncode == 0, errors
    continuation = text.removeprefix(prompt)
    assert "self." in continuation and "\n        " in continuation
