"""Who trained a run, and how each attempt ended, is told by a log that the holder alone writes."""

import os

import pytest
from etils import epath

from lm.errors import Interrupted, UserError
from lm.experiment.attempts import ATTEMPTS, attempt, read_attempts
from lm.experiment.claim import Held, claim
from lm.experiment.status import describe_status
from tests.claims import write_claim
from tests.memory_bucket import bucket  # noqa: F401 (a fixture)


def begin(folder):
    """What there is once a run has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")


def ways(folder):
    return [each.get("how") for each in read_attempts(folder)]


def test_every_attempt_has_a_line_with_who_made_it_from_which_step_and_how_it_ended(tmp_path):
    begin(tmp_path)
    for error in (FloatingPointError("no\nluck"), Interrupted(3, 15), KeyboardInterrupt()):
        with pytest.raises(type(error)), attempt(tmp_path) as begins:
            begins(2)
            raise error
    with attempt(tmp_path):
        assert "how" not in read_attempts(tmp_path)[-1]
    assert ways(tmp_path) == ["failed", "interrupted", "interrupted", "finished"]
    first, *_, last = read_attempts(tmp_path)
    assert first["error"] == "FloatingPointError: no luck"
    assert first["pid"] == os.getpid() and first["step"] == 2 and first["took_over"] is None
    assert first["began"] <= first["ended"] <= last["began"] and last["step"] is None


def test_who_takes_over_says_from_whom(tmp_path):
    begin(tmp_path)
    write_claim(tmp_path, host="node7", born="1")
    with attempt(tmp_path):
        pass
    (record,) = read_attempts(tmp_path)
    assert record["took_over"] == {"host": "node7", "pid": os.getpid()}


def test_who_was_taken_over_writes_nothing_more(tmp_path):
    begin(tmp_path)
    with pytest.raises(Held), attempt(tmp_path):
        (tmp_path / ATTEMPTS).write_text("theirs")
        raise Held("taken over")
    assert (tmp_path / ATTEMPTS).read_text() == "theirs"


def test_a_mistake_that_is_found_before_there_is_a_run_is_no_attempt(tmp_path):
    with pytest.raises(UserError), attempt(tmp_path / "new"):
        raise UserError("no such text")
    assert not (tmp_path / "new").exists()
    with pytest.raises(KeyboardInterrupt), attempt(tmp_path / "run"):
        raise KeyboardInterrupt
    with pytest.raises(UserError), attempt(tmp_path / "run"):
        raise UserError("no such text")
    assert ways(tmp_path / "run") == ["interrupted"]
    assert "interrupted  no step" in describe_status(tmp_path)[1]


def test_what_cannot_be_read_hides_no_other_attempt(tmp_path):
    (tmp_path / ATTEMPTS).write_text('{"how": "failed"}\n{"how\n[]\n{"how": "finished"}\n')
    assert ways(tmp_path) == ["failed", "finished"]


def test_attempts_in_a_bucket_are_written_whole(bucket):  # noqa: F811
    folder = epath.Path(bucket) / "run"
    for _ in range(2):
        with claim(folder), attempt(folder) as begins:
            begins(1)
    assert ways(folder) == ["finished", "finished"]
    assert [child.name for child in folder.iterdir()] == [ATTEMPTS]
