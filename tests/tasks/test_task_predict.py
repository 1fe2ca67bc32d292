"""A run says of the examples of another file what it says of its own held-out ones."""

import csv
import dataclasses
import json

import jax
import pytest

from configs import default
from lm.checkpoints.restored import Restored
from lm.config import override
from lm.errors import UserError
from lm.evaluation.predict import describe, evaluate_files, predict, write_result
from lm.evaluation.task_evaluation import predictions
from lm.tasks import build_task, load_examples
from lm.tasks.multiple_choice import READINGS
from lm.tasks.records import Record
from lm.training.prepare import corpus_program, prepare_corpus

# Per task: its settings, the run's file, and what stands in the column of labels.
KINDS = {
    "classification": ({}, "reviews.csv", "label"),
    "pairs": (
        {"task.name": "classification", "task.text": ("question", "context"),
         "task.label": "target"},
        "rows.jsonl", "target",
    ),
    "regression": (
        {"task.label": "rating", "output.head": "squared", "output.bias": True},
        "reviews.csv", "rating",
    ),
    "token_classification": ({"task.text": ("tokens",), "task.label": "tags"}, "names.conll",
    "tags"), "extractive_qa": (
        {"task.text": ("question", "context"), "task.label": "answers", "task.doc_stride": 4,
         "data.seq_len": 48},
        "rows.jsonl", "answers",
    ),
    "multiple_choice": ({"task.text": ("question",), "task.label": "choice"}, "rows.jsonl",
    "choice"), "seq2seq": (
        {"task.text": ("context",), "task.label": "target", "task.max_new_tokens": 5,
         "model.architecture": "encoder_decoder", "output.tied": True},
        "rows.jsonl", "target",
    ),
}  # fmt: skip


@pytest.fixture
def opened(task_config, labelled):
    """A run of a kind, at its initial weights."""

    def opens(kind):
        settings, file, _ = KINDS[kind]
        known = {"task.name": kind, "data.source": f"files:{labelled}/{file}", **settings}
        config = override(task_config, known)
        corpus = prepare_corpus(config)
        program = corpus_program(config, corpus)
        with jax.set_mesh(program.mesh):
            params = program.init_state(jax.random.key(3)).all_params
        return Restored(config, corpus.tokenizer, program, params, 12)

    return opens


def unlabelled(file, column, to):
    """A copy of a file without its labels."""
    if file.suffix == ".csv":
        rows = list(csv.DictReader(file.open()))
        fields = [name for name in rows[0] if name != column]
        with to.open("w") as out:
            writer = csv.DictWriter(out, fields, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return to
    if file.suffix == ".conll":
        to.write_text("\n".join(line.split("\t")[0] for line in file.read_text().split("\n")))
        return to
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    lines = (json.dumps({k: v for k, v in row.items() if k != column}) for row in rows)
    to.write_text("\n".join(lines))
    return to


def near(found, wanted):
    """Equal but for the rounding of another batch."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        numeric = isinstance(value, float)
        assert found[key] == (pytest.approx(value, abs=1e-4) if numeric else value), key


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k == "seq2seq" else ()) for k in KINDS]
)
def test_another_files_examples_get_the_runs_predictions_with_and_without_labels(
    kind, opened, labelled, tmp_path
):
    run = opened(kind)
    with jax.set_mesh(run.program.mesh):
        said = predictions(run.program, run.params, run.corpus, run.config)
    _, file, column = KINDS[kind]
    (tmp_path / file).write_text((labelled / file).read_text())
    found = predict(run, [str(tmp_path / file)])
    by_place = {each["place"]: each for each in found.predictions}
    assert len(by_place) == 96 > len(said) > 10
    for each in said:
        near(by_place[each["place"]], each)
    assert found.metrics[f"eval/{run.corpus.task.main_metric}"] is not None

    bare = unlabelled(labelled / file, column, tmp_path / f"bare{(labelled / file).suffix}")
    alone = predict(run, [str(bare)])
    assert not alone.labelled and not alone.metrics
    for each, full in zip(alone.predictions, found.predictions, strict=True):
        assert not {"label", "nats", "exact", "f1", "hits", "tokens"} & each.keys()
        assert each["predicted"] == full["predicted"]


def test_all_predictions_are_written_and_metrics_of_those_with_a_label(opened, tmp_path):
    run = opened("classification")
    (tmp_path / "test.csv").write_text("text,label\ngood one,pos\nbad one,\nfine,pos\n")
    found = predict(run, [f"files:{tmp_path}/test.csv"])
    write_result(found, tmp_path / "new" / "out")
    folder = tmp_path / "new" / "out"
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [each.get("label") for each in lines] == ["pos", None, "pos"]
    assert [each["place"] for each in lines] == [f"test.csv line {n}" for n in (2, 3, 4)]
    kept = json.loads((folder / "metrics.json").read_text())
    assert kept["eval/examples"] == 2 and kept["eval/accuracy"] == found.metrics["eval/accuracy"]
    page = (folder / "report.txt").read_text()
    assert f"2 examples held out of files:{tmp_path}/test.csv" in page
    assert (folder / "report.png").stat().st_size > 10_000
    assert "on the 2 with a label" in describe(found, folder)[1]


MISTAKES = {
    "labels that the run does not know": (
        "text,label\nso so,mixed\ngood,pos\nmeh,mixed\n",
        r"know these labels: 'mixed' \(2, first test.csv line 2\); it knows neg, pos",
    ),
    "no label": ("text,label\ngood,pos\nmeh,\n", r"1 of 2 .* first test.csv line 3; .*predict"),
    "no column of texts": ("review,label\ngood,pos\n", "has no column 'text', only review, label"),
    "no examples": ("text,label\n", "holds no examples"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_file_that_cannot_be_measured_is_named(mistake, opened, tmp_path):
    content, message = MISTAKES[mistake]
    (tmp_path / "test.csv").write_text(content)
    run = opened("classification")
    with pytest.raises(UserError, match=message):
        evaluate_files(run, [str(tmp_path / "test.csv")], None)


def test_tokens_are_of_tasks_that_write(opened, labelled):
    with pytest.raises(UserError, match="--max_new_tokens=9 is of task seq2seq"):
        predict(opened("classification"), [str(labelled / "reviews.csv")], max_new_tokens=9)


def test_nothing_is_written_where_something_is(opened, labelled, tmp_path):
    run = opened("classification")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        evaluate_files(run, [str(labelled / "reviews.csv")], tmp_path)


def test_more_choices_than_a_run_has_learned_are_named(opened, tmp_path):
    run = opened("multiple_choice")
    row = {"question": "which?", "choices": ["a", "b", "c"], "choice": 1}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"test.jsonl line 1 has 3 choices, but .* among 2 at most"):
        predict(run, [str(tmp_path / "test.jsonl")])


@pytest.mark.parametrize("reading", READINGS)
def test_choices_without_a_label_are_read_however_labels_are_written(reading, task_config):
    task = build_task(override(task_config, {"task.name": "multiple_choice"}))
    task = dataclasses.replace(task, choice_labels=reading)
    record = Record("a.jsonl line 1", {"text": "which?", "choices": ["x", "y"]})
    assert not task.has_label(record)
    assert task.unlabelled_example(record, ("0", "1"))["label"] == 0


def test_a_source_without_a_held_out_split_is_read_whole_and_says_so(monkeypatch, capsys):
    config = default.get_config()
    found = [
        Record(f"example {i}", {"text": "x"}, split)
        for i, split in enumerate(("train", "train", "validation"))
    ]
    monkeypatch.setattr(load_examples, "records", lambda *_: iter(found))
    assert load_examples._held_out("tfds:x", config) == found[2:]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(load_examples, "records", lambda *_: iter(found[:2]))
    assert load_examples._held_out("tfds:x", config) == found[:2]
    assert "tfds:x has no validation split; all of its examples" in capsys.readouterr().err
