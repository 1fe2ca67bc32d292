"""Checkpoints on s3:// are whole or do not count, and come back bit for bit."""

import os
import tempfile

import fsspec
import pytest
from etils import epath

from lm.checkpoints import checkpointer
from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.preservation import Preservation
from lm.errors import UserError
from tests.checkpoints.test_checkpointer import assert_same, shapes, state_at
from tests.memory_bucket import bucket  # noqa: F401 (a fixture)


@pytest.fixture
def workdir(bucket, tmp_path, monkeypatch):  # noqa: F811
    """A workdir on s3:// to which steps 3, 5 and 7 were saved; the last two are kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workdir = epath.Path(bucket) / "run"
    checkpoints = Checkpoints(workdir, Preservation(2))
    for step in (3, 5, 7):
        checkpoints.save(state_at(step))
    checkpoints.close()
    return workdir


def files(folder):
    return [epath.Path(f"s3:/{name}") for name in fsspec.filesystem("s3").find(str(folder))]


def largest(folder):
    return max(files(folder), key=lambda path: path.stat().length)


def load(workdir, keep=None):
    checkpoints = Checkpoints(workdir, keep)
    try:
        return checkpoints.load(shapes(state_at(7)))
    finally:
        checkpoints.close()


def test_a_state_comes_back_bit_for_bit_and_no_local_copy_stays(workdir, tmp_path):
    assert Checkpoints(workdir).steps == [5, 7]
    assert_same(load(workdir), state_at(7).saved)
    assert not [name for name in os.listdir(tmp_path) if "read" not in name]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def removed(path):
    path.unlink()


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncated, flipped, removed])
def test_a_damaged_file_names_the_checkpoint_and_the_one_before_is_used(workdir, damage, capsys):
    damage(largest(workdir / "checkpoints/7"))
    assert_same(load(workdir), state_at(5).saved)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoint s3://bucket/run/checkpoints/7 cannot be read (")
    assert line.endswith("it is damaged or of another model; step 5 is used instead")


def test_the_run_that_writes_moves_a_damaged_checkpoint_away(workdir, capsys):
    flipped(largest(workdir / "checkpoints/7"))
    assert_same(load(workdir, Preservation(2)), state_at(5).saved)
    assert "; moved to s3://bucket/run/damaged/7; step 5" in capsys.readouterr().err
    assert Checkpoints(workdir).steps == [5]
    assert files(workdir / "damaged/7")


def test_what_a_killed_upload_left_does_not_count_and_is_removed_by_the_next_save(workdir):
    (workdir / "checkpoints/7/manifest.json").unlink()
    assert_same(load(workdir), state_at(5).saved)
    checkpoints = Checkpoints(workdir, Preservation(2))
    checkpoints.save(state_at(6))
    checkpoints.close()
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"5", "6"}


def test_several_processes_are_told_where_they_can_save(bucket, monkeypatch):  # noqa: F811
    monkeypatch.setattr(checkpointer, "process_count", lambda: 2)
    with pytest.raises(UserError, match="several processes cannot save into s3://"):
        Checkpoints(f"{bucket}/run")
