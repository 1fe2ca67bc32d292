"""Ranking: its loss is ListNet's, its measure NDCG, and a model learns to order."""

import json

import numpy as np
import pytest

from lm.config import override
from lm.errors import UserError
from lm.experiment.train import train
from lm.tasks import build_task
from lm.tasks.ranking import ndcg, targets_of
from lm.tasks.records import Record

RANKING = {
    "task.name": "ranking", "task.text": (), "task.choices": ("items",),
    "task.label": "relevance", "output.tied": False, "data.seq_len": 24,
}  # fmt: skip


def test_ndcg_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for count in (2, 5, 12):
        relevance, scores = draw.integers(0, 5, count), draw.permutation(count)
        gains = np.exp2(relevance)[None] - 1.0
        for cut in (3, 10):
            expected = metrics.ndcg_score(gains, scores[None], k=cut) if gains.any() else 1.0
            assert ndcg(relevance, np.argsort(-scores), cut) == pytest.approx(expected, abs=1e-12)


def test_a_list_without_relevance_is_in_order_however_it_stands():
    assert ndcg([0, 0, 0], [2, 0, 1], 3) == 1.0


def test_targets_are_a_softmax_of_relevance():
    scipy = pytest.importorskip("scipy.special")
    np.testing.assert_allclose(targets_of([0, 1.5, 32]), scipy.softmax([0, 1.5, 32.0]), rtol=1e-6)


@pytest.mark.parametrize(
    "label", ["3", [1.0], [1, 2, 3], [0, -1], [0, float("nan")], [0, 33], None]
)
def test_labels_that_are_no_relevances_are_refused(task_config, label):
    task = build_task(override(task_config, RANKING))
    with pytest.raises(UserError, match="line 1"):
        task.example(Record("line 1", {"items": ["a", "b"], "relevance": label}))


@pytest.mark.slow
def test_a_model_learns_to_order_and_its_loss_is_that_of_the_list(task_config, tmp_path):
    draw = np.random.default_rng(1)
    lines = []
    for _ in range(96):
        relevance = draw.permutation(4)[: draw.integers(2, 5)]  # some lists are shorter
        items = [f"{('dull', 'fair', 'good', 'great')[r]} {draw.integers(9)}" for r in relevance]
        lines.append({"items": items, "relevance": relevance.tolist()})
    file = tmp_path / "lists.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    keys = {"data.source": f"files:{file}", "data.validation_fraction": 0.25, "steps": 60}
    train(override(task_config, RANKING | keys), tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["eval/ndcg_3"] > 0.95, result
    said = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in said]
    entropy = [-(p := targets_of(each["label"])) @ np.log(p) for each in found]
    assert all(each["nats"] >= h - 1e-5 for each, h in zip(found, entropy, strict=True))
    assert all(sorted(p["predicted"]) == list(range(len(p["label"]))) for p in found)
