"""Answers of any length can be said, spaces around one are no part of it, and a threshold says when
there is none.
"""

import numpy as np
import pytest

from configs import default
from lm.config import override
from lm.data import ByteTokenizer
from lm.data.tokenizer import Encoded
from lm.errors import UserError
from lm.tasks import build_task, metrics
from lm.tasks.check import check_task
from lm.tasks.layout import Layout
from lm.tasks.prepare import prepare_task
from lm.tasks.records import Record

CONTEXT = "It was Ada Lovelace of London."
L = 64


def task(**options):
    config = default.get_config()
    config.task.update(
        name="extractive_qa", text=("question", "context"), label="answers", **options
    )
    return build_task(config)


def example(*answers, context=CONTEXT):
    starts = [context.index(answer) for answer in answers]
    shown = {"question": "who?", "context": context, "label": list(answers), "starts": starts}
    return {"place": "here", **shown}


def words(text):
    """Encodes a text as words that hold the space before them."""
    firsts = [0, *(i for i, letter in enumerate(text) if letter == " ")]
    ends = [*firsts[1:], len(text)]
    return Encoded(
        np.arange(len(firsts)), np.array([b - a for a, b in zip(firsts, ends, strict=True)] + [0])
    )


@pytest.mark.parametrize("answer", ["Ada Lovelace", "Ada Lovelace ", " Ada Lovelace", "Ada "])
def test_space_around_an_answer_takes_no_neighbour_into_it(answer):
    given, layout = example(answer), Layout(length=L, start=0, end=0)
    for encode in (words, lambda text: ByteTokenizer().encode_batch([text])[0]):
        (row,) = task(doc_stride=8).rows(given, [encode("who?"), encode(CONTEXT)], layout, {})
        first, last = (row["spans"][place] for place in row["targets"])
        assert CONTEXT[first[0] : last[1]].strip() == answer.strip()


def test_an_answer_of_spaces_is_named():
    values = {"question": "q", "context": "a b", "answers": {"text": [" "], "answer_start": [1]}}
    with pytest.raises(UserError, match="the answer ' ' does not stand"):
        task().example(Record("here", values))


def outputs(start, end, none, size=60):
    """Outputs that rather point at the span start to end, or with `none` nats more at none."""
    log_probs = np.full((2, size), -50.0)
    log_probs[0, start], log_probs[1, end], log_probs[:, 0] = -1.0, -1.0, -1.0 + none / 2
    spans = np.stack([np.arange(size), np.arange(size) + 1], axis=1)
    spans[0] = 0  # the place that says "none" is no part of the context
    return {"log_probs": log_probs, "spans": spans}


def test_the_longest_answer_is_that_of_training_or_the_one_of_the_config():
    given = example(context="x" * 60)

    def said(judge):
        return len(judge.predict(given, [outputs(5, 49, -9.0)], ())["predicted"])

    seen = {"longest": 45, "lost": 0, "number": 3}
    derived, notes = task().with_answer_limit(seen)
    assert said(derived) == 45 and not notes
    assert task().with_answer_limit({**seen, "longest": 4})[0].max_answer_length == 30
    short, notes = task(max_answer_length=44).with_answer_limit(seen)
    assert (
        said(short) < 44 and "answers of up to 45 tokens, which can never be predicted" in notes[0]
    )
    assert not task(max_answer_length=45).with_answer_limit(seen)[1]


def test_training_answers_are_measured_and_those_that_fit_nowhere_are_said(
    task_config, labelled, cache, capsys
):
    settings = {"data.source": f"files:{labelled}/rows.jsonl", "task.name": "extractive_qa"}
    settings |= {
        "task.text": ("question", "context"),
        "task.label": "answers",
        "task.doc_stride": 1,
    }
    data = prepare_task(override(task_config, settings | {"data.seq_len": 30}), cache)
    assert (
        data.manifest["answers"]["longest"] == len("lovely") and data.task.max_answer_length == 30
    )
    assert data.manifest["answers"]["lost"] == 0
    settings |= {"data.seq_len": 10, "task.max_answer_length": 2}
    data = prepare_task(override(task_config, settings), cache)
    assert 0 < data.manifest["answers"]["lost"] < data.manifest["answers"]["number"]
    told = capsys.readouterr().err
    assert "training answers fit into no window" in told and "can never be predicted" in told


@pytest.mark.parametrize(
    ("none", "threshold", "said"),
    [(-1.0, 0.0, "Ada"), (1.0, 0.0, ""), (1.0, 1.5, "Ada"), (-1.0, -1.5, ""), (0.0, 0.0, "Ada")],
)
def test_nothing_is_said_where_it_is_likelier_by_more_than_the_threshold(none, threshold, said):
    found = task(no_answer_threshold=threshold).predict(example(), [outputs(7, 9, none)], ())
    assert found["predicted"] == said and found["span"] == "Ada"
    assert found["no_answer"] == pytest.approx(none)
    assert found["exact"] == (said == "") and found["span_exact"] == 0.0
    log = 2 * -1.0 + (0 if said else none)
    assert found["confidence"] == pytest.approx(np.exp(log))


@pytest.mark.parametrize("none", [-np.inf, -1.0], ids=["nor none", "but none"])
def test_where_no_span_has_a_probability_all_that_is_told_is_a_number(none):
    """As sparse heads say of words outside their support."""
    said = outputs(7, 9, 0.0)
    said["log_probs"] = np.full_like(said["log_probs"], -np.inf)
    said["log_probs"][:, 0] = none
    found = task().predict(example(), [said], ())
    assert found["predicted"] == "" and np.isfinite([found["no_answer"], found["confidence"]]).all()
    metric_inputs = task().metric_inputs([found, found | {"no_answer": -1.0, "span_f1": 1.0}], ())
    assert np.isfinite(metrics.best_threshold(metric_inputs, 3)).all()


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_best_threshold_beats_every_other(levels):
    draw = np.random.default_rng(levels)
    for size in (1, 2, 40):
        silent = draw.integers(2, size=size)
        span = np.where(silent, 0.0, draw.random(size))
        difference = draw.integers(levels, size=size) + silent
        metric_inputs = np.stack([span, span, span, span, difference, silent], axis=1)

        def mean(threshold, span=span, difference=difference, silent=silent):
            return np.where(difference > threshold, silent, span).mean()

        best, threshold = metrics.best_threshold(metric_inputs, 3)
        assert best == pytest.approx(max(map(mean, np.arange(-2, levels + 2) + 0.5)))
        assert mean(threshold) == pytest.approx(best)
        assert metrics.EXTRACTIVE_QA["best_f1"](metric_inputs, 0) == best


def test_the_report_names_the_best_thresholds():
    judge = task()
    said = [
        judge.predict(example("Ada"), [outputs(7, 9, 3.0)], ()),
        judge.predict(example("Ada"), [outputs(7, 9, -1.0)], ()),
        judge.predict(example(), [outputs(7, 9, 7.0)], ()),
    ]
    scores = judge.score(said, ())
    assert scores["exact_match"] == pytest.approx(2 / 3)
    assert scores["best_exact"] == scores["best_f1"] == 1.0
    page = judge.report(said, ())
    assert "2 of 3 have an answer; 1 were given one" in page
    assert "best exact match 1.0000, with config.task.no_answer_threshold=5\n" in page
    assert "those without an answer: exact match 1.0000" in page


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_answer_length", 0, "must be at least 1"),
        ("no_answer_threshold", float("nan"), "must be above -inf and below inf"),
    ],
)
def test_options_of_answers_have_bounds(task_config, key, value, message):
    settings = {"task.name": "extractive_qa", "task.text": ("q", "c"), f"task.{key}": value}
    with pytest.raises(UserError, match=message):
        check_task(override(task_config, settings))
