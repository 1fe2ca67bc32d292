"""The report of a task says what it was held out of, and what its diagram's points are."""

import json
import types

import numpy as np
import pytest

from configs import default
from lm.evaluation import task_report
from lm.evaluation.task_report import write_report
from lm.tasks import build_task


def judged(name, labels, **manifest):
    config = default.get_config()
    config.task.update(name=name)
    manifest = {"source": "files:train.csv", **manifest}
    return types.SimpleNamespace(task=build_task(config), labels=labels, manifest=manifest)


def tagged(number):
    """Sentences whose words are right as often as they say, and sentences hardly ever."""
    draw = np.random.default_rng(0)
    for place in range(number):
        confidences = draw.uniform(0.4, 1.0, size=12)
        said = ["B-X" if hit else "O" for hit in draw.random(12) < confidences]
        yield {
            "place": f"line {place}",
            "text": "w " * 12,
            "words": ["w"] * 12,
            "label": ["B-X"] * 12,
            "predicted": said,
            "confidence": min(confidences),
            "confidences": confidences.tolist(),
        }


@pytest.mark.parametrize(
    ("manifest", "source"),
    [
        ({}, "files:train.csv"),
        ({"held_out": ""}, "files:train.csv"),
        ({"held_out": "files:dev.csv"}, "files:dev.csv"),
    ],
)
def test_the_report_names_the_file_that_was_held_out(tmp_path, monkeypatch, manifest, source):
    monkeypatch.setattr(task_report, "_draw", lambda *_: None)
    said = [
        {"place": f"line {n}", "text": "t", "label": "a", "predicted": "ab"[n % 2]}
        | {"confidence": 0.5, "nats": 0.7}
        for n in range(4)
    ]
    write_report(tmp_path, judged("classification", ("a", "b"), **manifest), said)
    assert (tmp_path / "report.txt").read_text().startswith(f"4 examples held out of {source}\n")


def test_the_diagram_of_tagging_is_of_words_and_says_so(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(task_report, "_reliability", lambda axes, *values: drawn.append(values))
    data = judged("token_classification", ("O", "B-X", "I-X"))
    write_report(tmp_path, data, list(tagged(40)))
    ((confidences, right, what),) = drawn
    found = task_report.calibration(np.array(confidences), np.array(right), task_report.BINS)
    assert len(confidences) == 480 and what == "a word's tag"
    assert found.error < 0.05
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["confidences"]) == 12 for line in lines)
