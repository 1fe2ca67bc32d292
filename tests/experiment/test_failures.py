"""A full disk, missing rights and too little memory are one line each, and lose nothing."""

import errno
import os

import jax
import pytest

import run
from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.preservation import Preservation
from lm.errors import UserError, explain
from lm.experiment.ablation import sweep as sweep_module
from lm.experiment.ablation.points import Ablation, make_points
from lm.experiment.ablation.sweep import train_points
from lm.training.metric_writer import Writer, read_metrics
from tests.checkpoints.test_checkpointer import assert_same, shapes, state_at

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/run/metrics.jsonl")
OF_TENSORSTORE = 'RESOURCE_EXHAUSTED: Failed writing: "/data/d/0": file 28: {} [os_error=28]'
OOM = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nStack:")


def caused(error: Exception) -> Exception:
    """Another kind of error, which came from this one."""
    found = RuntimeError("save failed")
    found.__cause__ = error
    return found


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FULL, "no space is left for /data/run/metrics.jsonl"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left:"),
        (
            ValueError(OF_TENSORSTORE.format("No space left on device")),
            "no space is left for /data/d",
        ),
        (caused(FULL), "no space is left for"),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "no right to .* for /data:"),
        (OSError(errno.EROFS, "Read-only file system", "/data"), "no right to read or write"),
        (ValueError(OF_TENSORSTORE.format("Read-only file system")), "no right to .* for /data/d"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/data/0"), "failed for /data/0 .* may pass"),
        (
            ValueError(OF_TENSORSTORE.format("Stale file handle")),
            "failed for /data/d/0 .* may pass",
        ),
        (MemoryError(), "the memory of this machine is used up"),
        (OOM, r"device is used up \(Out of memory allocating 9 bytes.\): in training raise"),
    ],
)
def test_a_failure_of_the_machine_is_one_line(error, words, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(run.command_line, "find_command", fail)
    assert run.main(["run.py", "train"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("run.py: ")
    with pytest.raises(UserError, match=words):
        raise UserError(line)


@pytest.mark.parametrize("error", [ValueError("shape"), KeyError("x"), FileNotFoundError(2, "no")])
def test_an_error_of_the_code_keeps_its_traceback(error, monkeypatch):
    def fail(*_):
        raise error

    assert explain(error) is None
    monkeypatch.setattr(run.command_line, "find_command", fail)
    with pytest.raises(type(error)):
        run.main(["run.py", "train"])


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main(["run.py", "gallery", f"--workdir={tmp_path / 'file' / 'run'}"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "file/run cannot be made (Not a directory): use" in line


def test_what_an_error_hides_is_not_what_failed():
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/data")
        except PermissionError:
            raise UserError("a row is impossible") from None
    except UserError as error:
        assert explain(error) is None


def test_a_checkpoint_that_cannot_be_read_just_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/data/d/0")

    checkpoints = Checkpoints(tmp_path, Preservation(2))
    checkpoints.save(state_at(3))
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr("lm.checkpoints.checkpointer.ocp.load", fail)
        with pytest.raises(OSError, match="Stale"):
            checkpoints.load(shapes(state_at(3)))
    assert_same(checkpoints.load(shapes(state_at(3))), state_at(3).saved)
    checkpoints.close()


def test_a_line_that_finds_no_space_names_its_file_and_leaves_the_others(tmp_path):
    writer = Writer(tmp_path, 0, 0)
    writer.write(1, {"train/loss": 2.0})
    writer.close()
    with pytest.raises(OSError, match="space") as error, open("/dev/full", "w") as writer._file:
        writer.write(2, {"train/loss": 1.0})
    assert "metrics.jsonl" in str(explain(error.value))
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_checkpoint_that_finds_no_space_is_told_once_and_the_one_before_is_whole(
    tmp_path, monkeypatch
):
    class Failing:
        def result(self):
            raise ValueError(OF_TENSORSTORE.format("No space left on device"))

    checkpoints = Checkpoints(tmp_path, Preservation(2))
    checkpoints.save(state_at(3))
    checkpoints.wait()
    monkeypatch.setattr(checkpoints._checkpointer, "save_async", lambda *_, **__: Failing())
    checkpoints.save(state_at(5))
    with pytest.raises(ValueError, match="No space left"):
        checkpoints.wait()
    checkpoints.close()
    assert_same(Checkpoints(tmp_path).load(shapes(state_at(3))), state_at(3).saved)


@pytest.mark.parametrize("error", [FULL, OOM])
def test_a_full_disk_stops_a_sweep_and_too_little_memory_one_point(
    small_config, tmp_path, monkeypatch, capsys, error
):
    tried = []

    def learn(config, workdir, name):
        tried.append(name)
        raise error

    monkeypatch.setattr(sweep_module, "run_experiment", learn)
    found = make_points(small_config, Ablation([{}], (0, 1)), tmp_path)
    if error is FULL:
        with pytest.raises(OSError):
            train_points(found)
        assert len(tried) == 1
    else:
        assert train_points(found) == found
        assert capsys.readouterr().err.count("config.grad_accum_steps") == 2
