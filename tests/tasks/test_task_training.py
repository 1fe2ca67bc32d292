"""A task goes from a file to predictions through the same loop as language modelling."""

import json

import jax
import numpy as np
import pytest

from lm.checkpoints.restore import restore
from lm.config import override
from lm.evaluation.predict import evaluate_files
from lm.evaluation.task_report import MISTAKES
from lm.experiment.train import train
from lm.tasks import build_task


def test_classification_goes_from_a_table_to_metrics_and_predictions(task_config, tmp_path):
    result = train(task_config, tmp_path / "run")
    assert result["eval/accuracy"] > 0.9
    low, high = result["interval"]
    assert 0 <= low <= result["eval/accuracy"] <= high <= 1
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert len(predictions) == result["eval/examples"] > 20
    right = np.mean([p["predicted"] == p["label"] for p in predictions])
    assert right == pytest.approx(result["eval/accuracy"])
    assert all(0.5 <= p["confidence"] <= 1 for p in predictions)
    page = (tmp_path / "run" / "report.txt").read_text()
    assert "precision" in page and f"The {MISTAKES} worst mistakes" in page
    assert (tmp_path / "run" / "report.png").stat().st_size > 10_000
    run = restore(tmp_path / "run")
    assert run.corpus.labels == ("neg", "pos")
    everywhere = evaluate_files(run, [task_config.data.source], tmp_path / "all")
    assert everywhere["eval/examples"] == 96 and everywhere["eval/accuracy"] > 0.9
    again = {json.loads(x)["place"] for x in (tmp_path / "all" / "predictions.jsonl").open()}
    assert {p["place"] for p in predictions} < again


TASKS = {
    "regression": ({"task.label": "rating", "output.head": "squared", "output.bias": True}, {}),
    "token_classification": (  # over all devices, as any task may be
        {"data.source": "names.conll", "task.text": ("tokens",), "task.label": "tags",
         "mesh.data": -1},
        {"eval/entity_f1": 0.5},
    ),
    "extractive_qa": (
        {"data.source": "rows.jsonl", "task.text": ("question", "context"),
         "task.label": "answers", "task.doc_stride": 4, "data.seq_len": 48},
        {},
    ),
    "multiple_choice": (
        {"data.source": "rows.jsonl", "task.text": ("question",), "task.label": "choice",
         "data.seq_len": 64},
        {"eval/accuracy": 0.9},
    ),
    "seq2seq": (
        {"data.source": "rows.jsonl", "task.text": ("context",), "task.label": "target",
         "model.architecture": "encoder_decoder", "output.tied": True, "task.max_new_tokens": 5,
         "task.metric": "chrf"},
        {"eval/chrf": 50.0, "eval/rouge1": 0.5},
    ),
    "instruction": (
        {"data.source": "rows.jsonl", "task.text": ("messages",), "data.seq_len": 64,
         "model.architecture": "decoder", "output.tied": True},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "token_classification" else pytest.mark.slow) for n in TASKS],
)
def test_every_task_trains_and_reports(task_config, labelled, tmp_path, name):
    settings, least = TASKS[name]
    if "data.source" in settings:
        settings = settings | {"data.source": f"files:{labelled}/{settings['data.source']}"}
    config = override(task_config, {"task.name": name, **settings})
    result = train(config, tmp_path / "run")
    assert all(np.isfinite(v) for k, v in result.items() if k.startswith("eval/"))
    for metric, value in least.items():
        assert result[metric] >= value
    assert (tmp_path / "run" / "report.txt").exists()


@pytest.mark.parametrize(
    ("name", "prediction", "told"),
    [
        (
            "token_classification",
            {"words": ["in", "New", "York"], "predicted": ["O", "O", "I-LOC"],
             "label": ["O", "B-LOC", "I-LOC"], "confidence": 0.5},
            "New: O, not B-LOC (confidence 0.500)",
        ),
        ("regression", {"predicted": 0.2406599521636963, "label": -3.0}, "0.2407, not -3"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_few_words(task_config, name, prediction, told):
    assert build_task(override(task_config, {"task.name": name})).describe(prediction) == told


@pytest.mark.slow
@pytest.mark.parametrize("head", ["entmax", "sparsemax", "mixture", "adaptive", "sigmoid"])
def test_the_softmax_over_classes_is_any_head(task_config, tmp_path, head):
    result = train(override(task_config, {"output.head": head}), tmp_path / "run")
    assert result["eval/accuracy"] > 0.8


@pytest.mark.slow
def test_a_crf_tags(task_config, labelled, tmp_path):
    settings = {
        "task.name": "token_classification",
        "task.text": ("tokens",),
        "task.label": "tags",
        "output.head": "crf",
        "data.source": f"files:{labelled}/names.conll",
    }
    result = train(override(task_config, settings), tmp_path / "run")
    assert result["eval/entity_f1"] > 0.5
    assert jax.tree.leaves(restore(tmp_path / "run").params)
