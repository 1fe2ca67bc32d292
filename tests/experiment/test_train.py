"""A run resumes exactly, refuses what is not its own, and stops where numbers go bad."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.restore import restore
from lm.config import override, to_dict
from lm.errors import Interrupted, UserError
from lm.evaluation.held_out import Evaluation
from lm.experiment import result as result_module
from lm.experiment import run as run_module
from lm.experiment.attempts import read_attempts
from lm.experiment.result import write_result
from lm.experiment.status import describe_status
from lm.experiment.train import train
from lm.training import prepare as prepare_module
from tests.commands import small_decoder
from tests.conftest import QUICK


def interrupt_at(step, monkeypatch):
    """Sends SIGINT to this process when the data of a step is asked for."""
    original = run_module.local_train_batches

    def batches(*arguments, start, **keywords):
        for number, rows in enumerate(original(*arguments, start=start, **keywords), start + 1):
            if number == step:
                signal.raise_signal(signal.SIGINT)
            yield rows

    monkeypatch.setattr(run_module, "local_train_batches", batches)


@pytest.fixture(scope="module")
def base_config(base_config):
    """Everything that a run can write."""
    return override(base_config, {"log.trackers": ("tensorboard",)})


@pytest.fixture(scope="module")
def whole(base_config, tmp_path_factory):
    """The result and the folder of a run that was never interrupted, to be looked at."""
    workdir = tmp_path_factory.mktemp("train") / "whole"
    return train(base_config, workdir), workdir


@pytest.fixture
def finished(whole, tmp_path):
    """The same result and a copy of the folder, to be damaged and gone on with."""
    result, workdir = whole
    return result, shutil.copytree(workdir, tmp_path / "whole")


def test_a_workdir_explains_itself(small_config, whole):
    result, workdir = whole
    assert json.loads((workdir / "result.json").read_text()) == result
    assert json.loads((workdir / "config.json").read_text()) == to_dict(small_config)
    assert (workdir / "checkpoints" / "12").exists()
    assert list((workdir / "tensorboard").glob("events.*"))
    assert (workdir / "curve.png").stat().st_size > 10_000
    assert result["parameters"] == sum(x.size for x in jax.tree.leaves(restore(workdir).params))
    expected = {
        "eval/nats_per_token", "eval/bits_per_byte", "parameters", "flops_per_token", "seconds",
        "tokens_per_second", "config_hash", "data_hash", "commit", "versions", "device", "mesh",
        "seed", "steps",
    }  # fmt: skip
    assert expected <= result.keys()
    # Bytes are tokens here, but the token that closes a document is no byte of text.
    per_byte = result["eval/nats_per_token"] / np.log(2)
    ratio = result["eval/tokens"] / result["eval/bytes"]
    np.testing.assert_allclose(result["eval/bits_per_byte"], per_byte * ratio, rtol=1e-9)


def test_training_lowers_the_loss(whole, losses):
    _, workdir = whole
    records = [r["train/loss"] for r in losses(workdir) if "train/loss" in r]
    assert len(records) == 12
    assert records[-1] < records[0] - 0.5


def test_a_finished_run_is_left_alone(small_config, finished):
    result, workdir = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert train(small_config, workdir) == result
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.parametrize("stop", [4, 11])
def test_an_interrupted_run_resumes_to_the_same_bits(
    small_config, whole, tmp_path, monkeypatch, stop, losses, capsys
):
    _, workdir = whole
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        interrupt_at(stop, patch)
        train(small_config, broken)
    assert caught.value.signal == signal.SIGINT
    assert not (broken / "result.json").exists()
    capsys.readouterr()
    train(small_config, broken)
    assert f"resumes at step {stop};" in capsys.readouterr().out
    assert losses(broken) == losses(workdir)
    jax.tree.map(np.testing.assert_array_equal, restore(broken).params, restore(workdir).params)
    attempts = [(each["how"], each["step"]) for each in read_attempts(broken)]
    assert attempts == [("interrupted", 0), ("finished", stop)]
    assert describe_status(broken)[0].endswith("; 2 attempts")


def test_lines_after_the_last_checkpoint_are_dropped_on_resuming(
    small_config, finished, losses, capsys
):
    """As after SIGKILL: the checkpoint is of step 10, the lines go on to 12, the last is cut."""
    _, workdir = finished
    expected = losses(workdir)
    (workdir / "result.json").unlink()
    Checkpoints(workdir)._checkpointer.delete(12)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/lo')
    train(small_config, workdir)
    assert "resumes at step 10;" in capsys.readouterr().out
    assert losses(workdir) == expected


def test_a_checkpoint_of_one_mesh_restores_on_another(small_config, finished, capsys):
    result, workdir = finished
    (workdir / "result.json").unlink()
    Checkpoints(workdir)._checkpointer.delete(12)
    resumed = train(override(small_config, {"mesh.fsdp": 2, "mesh.tensor": 2}), workdir)
    assert "resumes at step 10;" in capsys.readouterr().out
    assert resumed["mesh"] == {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert abs(resumed["eval/nats_per_token"] - result["eval/nats_per_token"]) < 1e-4


def test_a_workdir_of_another_config_is_refused_and_untouched(small_config, finished):
    _, workdir = finished
    with pytest.raises(UserError, match=r"config\.model\.num_layers is 1 there and 3 here"):
        train(override(small_config, {"model.num_layers": 3}), workdir)
    assert json.loads((workdir / "config.json").read_text())["model"]["num_layers"] == 1


def test_a_folder_that_is_no_run_is_refused(small_config, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and is no run's folder"):
        train(small_config, tmp_path)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    small_config, finished, losses, capfd
):
    result, workdir = finished
    expected = losses(workdir)
    (workdir / "result.json").unlink()
    for path in (workdir / "checkpoints" / "12").rglob("d/*"):
        path.write_bytes(b"damaged")
    resumed = train(small_config, workdir)
    out, err = capfd.readouterr()
    assert "checkpoints/12 cannot be read" in err and "step 10 is used instead" in err
    assert "resumes at step 10;" in out
    assert resumed["eval/nats_per_token"] == result["eval/nats_per_token"]
    assert losses(workdir) == expected


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    small_config, tmp_path
):
    config = override(
        small_config,
        {
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 1e15,
            "optimizer.clip_norm": 0.0,
            "checkpoint.every": 1,
            "schedule.warmup_steps": 0,
        },
    )
    with pytest.raises(
        UserError, match=r"step \d+: the loss or its gradient is not finite; first: "
    ):
        train(config, tmp_path / "run")
    kept = Checkpoints(tmp_path / "run")
    program = prepare_module.shared_program(config, 256)
    state = kept.load(program.abstract_state.saved)
    assert int(state.step) == kept.latest >= 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_bad_batch_is_named_with_its_own_step_and_the_good_steps_are_kept(
    small_config, tmp_path, monkeypatch, losses
):
    config = override(small_config, {"checkpoint.every": 0, "evaluation.every": 0})
    original = prepare_module.shared_program

    def poisoned(*arguments):
        program = original(*arguments)

        def step(state, rows, key):
            bad = state.step == 6
            params = dict(state.params)
            params["embedding"] = jnp.where(bad, jnp.nan, params["embedding"])
            return program.train_step(state.replace(params=params), rows, key)

        return dataclasses.replace(program, train_step=jax.jit(step))

    monkeypatch.setattr(prepare_module, "shared_program", poisoned)
    with pytest.raises(UserError, match="step 7: the loss or its gradient is not finite"):
        train(config, tmp_path / "run")
    assert [record["step"] for record in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_run_with_half_a_result_evaluates_once_and_knows_all_that_it_knew(
    small_config, finished, losses, capsys
):
    """As after a kill in the last evaluation, or while the result was copied."""
    result, workdir = finished
    expected = losses(workdir)
    path = workdir / "result.json"
    path.write_text(path.read_text()[:300])
    partial = workdir / ".result.json.0123456789ab.partial"
    partial.write_text("{")
    again = train(small_config, workdir)
    assert not partial.exists()
    out, err = capsys.readouterr()
    assert "resumes at step 12;" in out and "result.json is not whole" in err
    assert again.keys() == result.keys() and json.loads(path.read_text()) == again
    timed = {"seconds": None, "device": None}
    assert again | timed == result | timed
    assert again["tokens_per_second"] and again["memory"]
    assert losses(workdir) == expected


def test_every_process_has_the_result_and_the_first_writes_it(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(result_module, "is_main", lambda: False)
    program = prepare_module.shared_program(small_config, 256)
    found = Evaluation({"eval/bits_per_byte": 2.0})
    result = write_result(found, small_config, program, tmp_path, seconds=1.0, steps=12)
    assert {"seconds", "steps", "eval/bits_per_byte", "config_hash"} <= result.keys()
    assert not list(tmp_path.iterdir())


def test_text_that_changed_since_is_refused(small_config, finished):
    _, workdir = finished
    manifest = json.loads((workdir / "data.json").read_text())
    (workdir / "data.json").write_text(json.dumps(manifest | {"hash": "0" * 64}))
    with pytest.raises(UserError, match="began with another text"):
        restore(workdir)


def test_the_cache_that_a_workdir_names_is_not_read_and_what_it_reads_is_said(
    small_config, finished, tmp_path, cache, monkeypatch, capsys
):
    """A cache holds compiled programs: native code."""
    _, workdir = finished
    recorded = json.loads((workdir / "config.json").read_text())
    foreign = tmp_path / "foreign"
    (workdir / "config.json").write_text(json.dumps(recorded | {"cache_dir": str(foreign)}))
    asked = []

    def update(name, value):
        asked.append((name, value))

    monkeypatch.setattr(jax.config, "update", update)
    assert restore(workdir).config.cache_dir == str(cache)
    assert restore(workdir, cache=str(tmp_path / "own")).config.cache_dir == str(tmp_path / "own")
    assert restore(workdir, given=small_config).config.cache_dir == small_config.cache_dir
    folders = [value for name, value in asked if name == "jax_compilation_cache_dir"]
    assert folders == [
        str(cache / "jax"),
        str(tmp_path / "own/jax"),
        f"{small_config.cache_dir}/jax",
    ]
    assert not foreign.exists()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and f"data.source = {small_config.data.source!r}" in said[0]


def test_a_donor_that_is_not_there_is_refused_before_any_work(small_config, tmp_path):
    config = override(small_config, {"init_from": str(tmp_path / "nobody")})
    with pytest.raises(UserError, match="there is no checkpoint in"):
        train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_init_from_takes_parameters_by_name_and_shape_and_says_what_is_fresh(
    small_config, whole, tmp_path, capsys
):
    _, donor = whole
    config = override(
        small_config,
        {
            "init_from": str(donor),
            "output.tied": False,
            "optimizer.learning_rate": 0.0,
            "mesh.fsdp": 2,
            "schedule.warmup_steps": 0,
            "steps": 1,
        },
    )
    train(config, tmp_path / "run")
    assert "fresh: head/table" in capsys.readouterr().out
    ours, theirs = restore(tmp_path / "run").params, restore(donor).params
    np.testing.assert_array_equal(ours["embedding"], theirs["embedding"])
    jax.tree.map(np.testing.assert_array_equal, ours["stack"], theirs["stack"])


def test_a_new_seed_changes_batches_and_weights(small_config, whole, tmp_path, losses):
    _, workdir = whole
    train(override(small_config, {"seed": 1}), tmp_path / "other")
    assert losses(workdir)[0]["train/loss"] != losses(tmp_path / "other")[0]["train/loss"]


COMMAND = [sys.executable, "run.py", "train"]


def test_a_signal_saves_and_ends_in_one_line(corpus_folder, cache, tmp_path):
    command = [
        *COMMAND,
        "--config=configs/default.py",
        f"--workdir={tmp_path / 'run'}",
        *small_decoder(corpus_folder, cache),
        "--config.steps=100000",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    one = os.environ | {"XLA_FLAGS": QUICK}
    process = subprocess.Popen(command, env=one, text=True, **pipes)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        watchdog.join(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    watchdog.cancel()
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.strip().splitlines()[-1].startswith("run.py: stopped at step")
    assert "Traceback" not in errors
    assert Checkpoints(tmp_path / "run").latest >= 1
