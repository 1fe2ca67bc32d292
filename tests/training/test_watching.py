"""What a run tells of its speed and its memory, and the trace of its steps, change no number."""

import time
from types import SimpleNamespace

import pytest

from lm.config import override
from lm.devices.accelerators import Accelerator
from lm.experiment import run as run_module
from lm.experiment.train import train
from lm.training.metric_writer import read_metrics
from lm.training.profiling import flops
from lm.training.profiling.memory import peak_memory

PERCENTILES = [f"perf/step_seconds_p{level}" for level in (50, 90, 99)]


@pytest.fixture(scope="module")
def short(base_config):
    settings = {"steps": 8, "log.every": 4, "evaluation.every": 0, "checkpoint.every": 0}
    return override(base_config, settings)


@pytest.fixture(scope="module")
def plain(short, tmp_path_factory):
    """The folder of a run that is only logged."""
    workdir = tmp_path_factory.mktemp("watching") / "plain"
    train(short, workdir)
    return workdir


def speeds(workdir):
    """The lines of a run that tell its speed."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [record for record in records if "tokens_per_second" in record]


def test_lines_have_percentiles_of_the_step_time_and_the_share_of_waiting(plain):
    records = speeds(plain)
    assert [record["step"] for record in records] == [4, 8]
    for record in records:
        low, middle, high = (record[name] for name in PERCENTILES)
        assert 0 < low <= middle <= high
        assert 0 <= record["perf/input_stall"] < 1


def test_a_cpu_has_no_mfu_and_says_nothing_of_its_memory(plain):
    assert not [r for r in speeds(plain) if {"perf/mfu", "perf/peak_memory"} & r.keys()]


def test_input_that_stalls_is_measured(short, tmp_path, monkeypatch):
    original = run_module.local_train_batches

    def slow(*arguments, **keywords):
        for rows in original(*arguments, **keywords):
            time.sleep(0.3)
            yield rows

    monkeypatch.setattr(run_module, "local_train_batches", slow)
    train(override(short, {"steps": 5}), tmp_path / "run")
    (record,) = speeds(tmp_path / "run")
    assert record["perf/step_seconds_p50"] >= 0.3
    assert 0.5 < record["perf/input_stall"] <= 1


def test_mfu_is_the_model_flops_of_a_second_over_the_peak(short, tmp_path, monkeypatch):
    known = Accelerator("cpu", 1e11, 1.0, 1.0, 1.0)
    monkeypatch.setattr(flops, "accelerator_of", lambda kind: known)
    monkeypatch.setattr(flops.jax, "device_count", lambda: 2)
    result = train(short, tmp_path / "run")
    for record in speeds(tmp_path / "run"):
        expected = record["tokens_per_second"] * result["flops_per_token"] / 2e11
        assert record["perf/mfu"] == pytest.approx(expected, abs=1e-4)


def test_the_peak_of_memory_is_that_of_the_fullest_device():
    devices = [SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (3, 7)]
    silent = [SimpleNamespace(memory_stats=lambda: None)]
    assert peak_memory(devices + silent) == 7
    assert peak_memory(silent) is None


def test_a_trace_has_the_steps_asked_for_and_changes_no_number(
    short, plain, tmp_path, losses, capsys
):
    window = {"log.profile_start": 3, "log.profile_steps": 2}
    train(override(short, window), tmp_path / "run")
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert trace.read_bytes().count(b"train_step") > 0
    assert "trace of steps from 3 on: " in capsys.readouterr().err
    assert losses(tmp_path / "run") == losses(plain)
    assert not (plain / "profile").exists()


def test_a_run_that_ends_within_its_trace_writes_it(short, tmp_path):
    window = {"log.profile_start": 7, "log.profile_steps": 9}
    train(override(short, window), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
