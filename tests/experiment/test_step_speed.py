"""experiments/step_speed.py measures rows in turns, and takes the flags of their sweep."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments import step_speed
from tests.conftest import QUICK

SCRIPT = pathlib.Path(step_speed.__file__)


def step_speed_of(*flags):
    command = [sys.executable, SCRIPT, *flags]
    environment = {"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu", "PATH": ""}
    return subprocess.run(
        command, cwd=SCRIPT.parents[1], env=environment, capture_output=True, text=True
    )


def test_ratios_are_medians_within_rounds(monkeypatch):
    times = {"a": [2.0, 4.0, 3.0], "b": [4.0, 4.0, 9.0]}
    monkeypatch.setattr(step_speed, "interleaved", lambda functions, rounds: times)
    found = step_speed.measure(dict.fromkeys(times, lambda: None), 3)
    assert found == {"a": {"seconds": 3.0, "ratio": 1.0}, "b": {"seconds": 6.0, "ratio": 2.0}}


def test_rows_of_the_command_line_are_measured_by_their_labels(tmp_path):
    small = {
        "steps": 2,
        "batch_size": 1,
        "data.seq_len": 64,
        "data.validation_fraction": 0.2,
        "model.num_layers": 1,
    }
    flags = ["--config=configs/clm.py:tiny", f"--config.data.source=files:{SCRIPT.parent}/*.py"]
    flags += [f"--config.{key}={value}" for key, value in small.items()]
    flags += [f"--config.cache_dir={tmp_path / 'cache'}", f"--workdir={tmp_path}", "--rounds=1"]
    done = step_speed_of(*flags, "--vary=model.norm=rmsnorm,layernorm")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    assert list(found) == ["norm=rmsnorm", "norm=layernorm"] and found["norm=rmsnorm"]["ratio"] == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--workdir=x"], "give --config=FILE[:ARG] and --workdir=DIR, those of a sweep"),
        (["--config=configs/attention.py:tiny", "--workdir=x", "--rounds=0"], "--rounds=0"),
    ],
)
def test_a_mistake_is_one_line(flags, reason):
    done = step_speed_of(*flags)
    assert done.returncode == 2
    assert reason in done.stderr and done.stderr.count("\n") == 1
