"""The habits of training work together, on a task, from a teacher to its student."""

import shutil

import jax
import numpy as np
import pytest

from lm.checkpoints.restore import restore
from lm.config import override
from lm.errors import UserError
from lm.experiment.train import train
from lm.tasks.layout import Layout
from lm.training.metric_writer import read_metrics
from lm.training.program import build_program
from lm.training.regularization.generalization_gap import adapted
from lm.training.validate import check

HABITS = {
    "model.dropout": 0.1,
    "regularization.rdrop": 0.5,
    "regularization.freelb": 2,
    "regularization.token_deletion": 0.1,
    "regularization.token_swap": 0.1,
    "regularization.mask_spans": 0.1,
    "regularization.sparsity": 0.5,
    "regularization.distillation": 0.5,
    "task.balanced": True,
}


# All that a step can have at once without a teacher.
TOGETHER = {
    name: value for name, value in HABITS.items() if name != "regularization.distillation"
} | {
    "regularization.l2_sp": 1e-3,
    "regularization.penalty_adaptation": 1.0,
    "regularization.mixout": 0.1,
}


@pytest.mark.parametrize(
    ("habits", "told"),
    [(TOGETHER, {"train/penalty", "train/sparsity"}), ({"regularization.mixup": 0.3}, set())],
    ids=["together", "mixup"],
)
def test_a_step_with_habits_has_a_finite_loss_and_tells_of_them(task_config, habits, told):
    sizes = {"model.d_model": 8, "data.seq_len": 8, "batch_size": 2, "optimizer.name": "sgd"}
    config = override(task_config, sizes | habits)
    check(config)
    program = build_program(config, 256, layout=Layout(8, start=255, end=255, num_classes=2))
    rows = {
        name: np.ones(x.shape, x.dtype) for name, x in program.objective.abstract_rows(2).items()
    }
    state = program.init_state(jax.random.key(0))
    _, metrics = program.train_step(state, rows, jax.random.key(1))
    always = {"train/loss", "train/gradient_norm", "train/learning_rate", "tokens", "finite"}
    assert metrics.keys() == always | told
    assert np.isfinite(metrics["train/loss"]) and metrics["finite"]


@pytest.mark.slow
def test_all_habits_together_bring_a_teachers_student_to_its_end(task_config, tmp_path):
    train(task_config, tmp_path / "teacher")
    taught = override(task_config, HABITS | {"regularization.teacher": str(tmp_path / "teacher")})
    student = override(taught, {"model.d_model": 16, "steps": 20})
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
    knobs = {
        "regularization.l2": 1e-3,
        "regularization.penalty_adaptation": 2.0,
        "evaluation.every": 4,
    }
    train(override(task_config, knobs), tmp_path / "run")
    records = [
        r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "eval/generalization_gap" in r
    ]
    strength = 1.0
    for record in records:
        strength = adapted(strength, record["eval/generalization_gap"], 2.0, 0.0)
        assert record["train/penalty_scale"] == pytest.approx(strength, rel=1e-5)
    assert [record["step"] for record in records] == [4, 8, 12]
    assert float(restore(tmp_path / "run").step) == 12
