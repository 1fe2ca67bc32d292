"""Proofs that take minutes: python -m pytest -m slow"""

import random
import time

import pytest

from lm.training.metric_writer import read_metrics
from tests.commands import start_fresh

pytestmark = pytest.mark.slow


def test_a_run_killed_three_times_ends_with_the_losses_of_an_uninterrupted_one(
    tmp_path, cache, losses
):
    command = [
        "train",
        "--config=configs/attention.py:tiny",
        f"--config.cache_dir={cache}",
        "--config.checkpoint.every=20",
        "--config.log.every=1",
    ]
    whole = start_fresh(*command, f"--workdir={tmp_path / 'whole'}")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    last = read_metrics(tmp_path / "whole" / "metrics.jsonl")[-1]["step"]
    rng = random.Random(time.time_ns())
    # Each leg is killed within its own third of the steps, once it has something to resume from.
    for leg in range(3):
        step = round(last * (leg + rng.uniform(0.5, 0.8)) / 3)
        process = start_fresh(*command, f"--workdir={tmp_path / 'killed'}")
        while process.poll() is None and reached(tmp_path / "killed") < step:
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        said, _ = process.communicate()
        assert ("resumes at step" in said) == (leg > 0)
    process = start_fresh(*command, f"--workdir={tmp_path / 'killed'}")
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resumes at step" in said
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def reached(workdir):
    """The last step of which a line is written; 0 where no checkpoint is whole."""
    if not any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
        return 0
    return read_metrics(workdir / "metrics.jsonl")[-1]["step"]


def test_tiny_reaches_2_6_bits_per_byte_and_writes_recognisable_python(tmp_path, cache):
    workdir = f"--workdir={tmp_path / 'clm'}"
    training = start_fresh(
        "train", "--config=configs/clm.py:tiny", f"--config.cache_dir={cache}", workdir
    )
    _, errors = training.communicate()
    assert training.returncode == 0, errors
    records = read_metrics(tmp_path / "clm" / "metrics.jsonl")
    assert records[-1]["eval/bits_per_byte"] < 2.6
    prompt = "class Reader:\n    def __init__(self, "
    flags = [f"--cache_dir={cache}", "--max_new_tokens=250", "--top_p=0.9"]
    generation = start_fresh("generate", workdir, f"--prompt={prompt}", *flags)
    text, errors = generation.communicate()
    assert generation.returncode == 0, errors
    continuation = text.removeprefix(prompt)
    assert "self." in continuation and "\n        " in continuation
