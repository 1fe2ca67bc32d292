"""The habits of training work together, on a task, from a teacher to its student."""

import shutil

import pytest

from lm.config import override
from lm.errors import UserError
from lm.metrics import read_metrics
from lm.restore import restore
from lm.train import train

HABITS = {
    "model.dropout": 0.1,
    "regularise.rdrop": 0.5,
    "regularise.freelb": 2,
    "regularise.delete": 0.1,
    "regularise.swap": 0.1,
    "regularise.hide_spans": 0.1,
    "regularise.prune": 0.5,
    "regularise.distil": 0.5,
    "task.balanced": True,
}


@pytest.mark.slow
def test_all_habits_together_bring_a_teachers_student_to_its_end(task_config, tmp_path):
    train(task_config, tmp_path / "teacher")
    taught = override(task_config, HABITS | {"regularise.teacher": str(tmp_path / "teacher")})
    student = override(taught, {"model.features": 16, "steps": 20})
    result = train(student, tmp_path / "student")
    assert result["eval/accuracy"] > 0.8
    *_, last = (r for r in read_metrics(tmp_path / "student/metrics.jsonl") if "train/loss" in r)
    assert last["train/sparsity"] == 0.5
    manifest = tmp_path / "teacher/data.json"
    manifest.write_text(manifest.read_text().replace('"neg"', '"bad"'))
    with pytest.raises(UserError, match="has the labels"):
        train(student, tmp_path / "other")
    # Who has learned needs no teacher any more.
    shutil.rmtree(tmp_path / "teacher")
    assert restore(tmp_path / "student").step == 20
    with pytest.raises(UserError, match="there is no"):
        train(student, tmp_path / "late")
