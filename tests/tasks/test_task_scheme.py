"""Tags mark entities by the scheme that they follow, and are judged by its rules."""

import random

import numpy as np
import pytest
import seqeval.metrics
from seqeval.scheme import BILOU

from configs import default
from lm.errors import UserError
from lm.experiment.primary_metric import primary_metric
from lm.tasks import build_task, metrics
from lm.tasks.records import Record
from lm.tasks.tag_scheme import MARKS, entities, entity_report, scheme_of
from lm.tasks.token_classification import TokenClassification

SCHEMES = {
    "iob1": ["I-PER I-PER B-PER O I-LOC", "O I-PER"],
    "iob2": ["B-PER I-PER B-PER O B-LOC", "O B-PER"],
    "ioe1": ["I-PER E-PER I-PER O I-LOC", "O I-PER"],
    "ioe2": ["I-PER E-PER E-PER O E-LOC", "O E-PER"],
    "iobes": ["B-PER E-PER S-PER O S-LOC", "O S-PER"],
    "bilou": ["B-PER L-PER U-PER O U-LOC", "O U-PER"],
}


def sentences(texts):
    return [text.split() for text in texts]


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_known_by_its_tags_and_all_schemes_mark_the_same_entities(name):
    tags = sentences(SCHEMES[name])
    assert scheme_of(tags) == scheme_of(tags, name) == name
    found = [entities(sentence, name) for sentence in tags]
    assert found == [{("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)}, {("PER", 1, 1)}]
    bare = [[tag[0] for tag in sentence] for sentence in tags]
    assert scheme_of(bare) in (name, "iob1", "iob2")  # without types, neighbours are of one


@pytest.mark.parametrize(
    "tags", ["NNP VBZ NN .", "N V A P", "DT-TL NN", "N-sg V-past O", "O O", "X-1 Y-2"]
)
def test_tags_that_mark_no_entities_have_no_scheme(tags):
    assert scheme_of([tags.split()]) == "none"


@pytest.mark.parametrize(
    ("tags", "given", "message"),
    [
        ("B-PER M-PER E-PER", "", "the tags E-PER, M-PER, B-PER .*scheme.*write M- as I-"),
        ("B-PER L-PER S-PER", "", "of no one scheme"),
        ("B-PER I-PER MISC", "", "of no one scheme.*config.task.tag_scheme='none'"),
        ("B-PER E-PER", "iob2", "the tag 'E-PER' is none of the scheme iob2"),
    ],
)
def test_tags_of_no_one_scheme_are_named(tags, given, message):
    with pytest.raises(UserError, match=message):
        scheme_of([tags.split()], given)
    assert scheme_of([tags.split()], "none") == "none"


def test_two_neighbours_of_one_word_are_two_entities():
    said, truth = ["U-PER", "U-PER", "O"], ["U-PER", "O", "O"]
    assert metrics.entity_counts(truth, said, "bilou") == [1, 2, 1, 2, 3]
    # By its own rules, what is not closed is no entity.
    assert metrics.entity_counts(["B-PER", "L-PER"], ["B-PER", "I-PER"], "bilou")[:3] == [0, 0, 1]


def test_bilou_scores_equal_seqevals_strict_ones():
    draw = random.Random(4)
    tags = ["O", *(f"{mark}-{kind}" for mark in "BILU" for kind in ("PER", "LOC"))]
    truth = [[draw.choice(tags) for _ in range(draw.randint(1, 9))] for _ in range(80)]
    said = [[t if draw.random() < 0.7 else draw.choice(tags) for t in row] for row in truth]
    both = zip(truth, said, strict=True)
    metric_inputs = np.array([metrics.entity_counts(a, b, "bilou") for a, b in both])
    strict = {"mode": "strict", "scheme": BILOU}
    assert metrics.TOKEN_CLASSIFICATION["entity_f1"](metric_inputs, 0) == pytest.approx(
        seqeval.metrics.f1_score(truth, said, **strict)
    )
    report = entity_report(truth, said, "bilou")
    assert report == seqeval.metrics.classification_report(truth, said, digits=4, **strict)


def tagger(**options):
    config = default.get_config()
    config.task.update(name="token_classification", text=("tokens",), label="tags", **options)
    return config, build_task(config)


def settled(tags):
    """A tagger that has seen sentences of these tags, and what it would say of each if right."""
    _, task = tagger()
    made = [
        task.example(Record("here", {"tokens": ["w"] * len(each), "tags": each})) for each in tags
    ]
    options, notes = task.infer_options(made)
    task = TokenClassification(**{**vars(task), **options})
    return task, task.collect_labels(made), notes


def test_labels_hold_each_type_with_all_marks_of_the_scheme():
    assert settled(sentences(SCHEMES["bilou"]))[1] == (
        "O", "B-LOC", "I-LOC", "L-LOC", "U-LOC", "B-PER", "I-PER", "L-PER", "U-PER",
    )  # fmt: skip
    assert settled([["E-X", "O", "I-X"]])[1] == ("O", "E-X", "I-X")
    assert settled([["NN", "DT", "O"]])[1] == ("O", "DT", "NN")


def test_parts_of_speech_are_judged_by_word_accuracy_alone():
    task, labels, notes = settled([["AB", "CB", "NN", "NN"]])
    prediction = {"label": ["AB", "CB", "NN", "NN"], "predicted": ["CB", "CB", "NN", "AB"]}
    assert task.score([prediction], labels) == {"word_accuracy": 0.5}
    assert task.main_metric == "word_accuracy" and "no entities" in notes[0]
    assert "CB" in task.report([prediction], labels)
    config, _ = tagger()
    assert primary_metric(config, available=["eval/word_accuracy"]).name == "eval/word_accuracy"
    assert primary_metric(config).name == "eval/entity_f1"
    with pytest.raises(UserError, match="'entity_f1', but the tags mark no entities"):
        tagger(metric="entity_f1")[1].infer_options([{"label": ["NN", "DT"]}])


@pytest.mark.parametrize("name", ["iobes", "bilou", "none"])
def test_a_model_that_learned_its_tags_elsewhere_is_judged_by_their_scheme(name):
    tags = ["NN", "DT", "O"] if name == "none" else ["O", *(f"{m}-PER" for m in MARKS[name])]
    task = tagger()[1].with_labels(tags)
    assert isinstance(task, TokenClassification) and task.tag_scheme == name
    said = {"label": ["U-PER", "O"], "predicted": ["U-PER", "U-PER"]}
    if name == "bilou":
        assert task.score([said], tags)["entity_precision"] == 0.5


def test_a_diagram_of_tagging_sets_each_words_confidence_against_that_word():
    task, labels, _ = settled([["B-X", "O", "O"]])
    log_probs = np.log([[0.1, 0.7, 0.2], [0.9, 0.05, 0.05], [0.6, 0.3, 0.1]])
    example = {"words": ["a", "b", "c"], "label": ["B-X", "O", "I-X"]}
    found = task.predict(example, [{"log_probs": log_probs, "weights": np.ones(3)}], labels)
    assert found["predicted"] == ["B-X", "O", "O"]
    assert found["confidences"] == pytest.approx([0.7, 0.9, 0.6])
    confidences, right = task.confidences([found, found])
    assert confidences == pytest.approx([0.7, 0.9, 0.6] * 2) and right == [True, True, False] * 2
