"""The habits of training work together, on a task, from a teacher to its student."""

import shutil

import pytest

from lm.config import override
from lm.errors import UserError
from lm.metrics import read_metrics
from lm.regularise.adapt import adapted
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


@pytest.mark.slow
def test_penalties_follow_the_gap_of_every_evaluation(task_config, tmp_path):
    knobs = {"regularise.l2": 1e-3, "regularise.adapt": 2.0, "evaluation.every": 4}
    train(override(task_config, knobs), tmp_path / "run")
    records = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "eval/gap" in r]
    strength = 1.0
    for record in records:
        strength = adapted(strength, record["eval/gap"], 2.0, 0.0)
        assert record["train/strength"] == pytest.approx(strength, rel=1e-5)
    assert [record["step"] for record in records] == [4, 8, 12]
    assert float(restore(tmp_path / "run").step) == 12
