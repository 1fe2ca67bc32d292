"""Every metric equals that of the library which the field quotes, on random input."""

import random

import numpy as np
import pytest
import sacrebleu
import seqeval.metrics
import sklearn.metrics
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats

from lm.tasks import metrics
from lm.tasks.bleu_rouge import OVERLAP, overlaps

# Right, said and true entities of these columns, by hand, by the rules of conlleval, the scorer of
# CoNLL-2000 (Tjong Kim Sang and Buchholz 2000): entities may begin with I-, B- closes another.
CONLLEVAL = [
    ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", (2, 2, 2)),
    ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", (1, 2, 2)),
    ("B-PER B-PER", "B-PER I-PER", (0, 1, 2)),
    ("I-PER I-PER O", "B-PER I-PER O", (1, 1, 1)),
    ("B-PER I-LOC", "B-PER I-LOC", (2, 2, 2)),
    ("B-PER I-PER", "B-PER B-LOC", (0, 2, 1)),
    ("O O O", "B-PER O B-LOC", (0, 2, 0)),
    ("S-PER O B-LOC E-LOC", "S-PER O B-LOC E-LOC", (2, 2, 2)),
    ("S-PER O B-LOC I-LOC E-LOC", "S-PER O B-LOC E-LOC S-LOC", (1, 3, 2)),
]


@pytest.mark.parametrize(("truth", "said", "counts"), CONLLEVAL)
def test_entities_are_counted_as_conlleval_counts_them(truth, said, counts):
    assert tuple(metrics.entity_counts(truth.split(), said.split())[:3]) == counts


@pytest.mark.parametrize("marks", ["BI", "BIES"])
def test_entity_scores_equal_seqevals(marks):
    draw = random.Random(1)
    tags = ["O", *(f"{mark}-{kind}" for mark in marks for kind in ("PER", "LOC", "ORG"))]
    lengths = [draw.randint(1, 12) for _ in range(60)]
    truth = [[draw.choice(tags) for _ in range(n)] for n in lengths]
    said = [[t if draw.random() < 0.7 else draw.choice(tags) for t in row] for row in truth]
    metric_inputs = np.array(
        [metrics.entity_counts(a, b) for a, b in zip(truth, said, strict=True)]
    )
    found = {
        name: measure(metric_inputs, 0) for name, measure in metrics.TOKEN_CLASSIFICATION.items()
    }
    expected = {
        "entity_f1": seqeval.metrics.f1_score(truth, said),
        "entity_precision": seqeval.metrics.precision_score(truth, said),
        "entity_recall": seqeval.metrics.recall_score(truth, said),
        "word_accuracy": seqeval.metrics.accuracy_score(truth, said),
    }
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("marks", ["BI", "BIES"])
def test_entities_are_those_of_conlleval_itself(marks):
    conlleval = pytest.importorskip("conlleval")
    draw = random.Random(2)
    tags = ["O", *(f"{mark}-{kind}" for mark in marks for kind in ("PER", "LOC"))]
    truth = [[draw.choice(tags) for _ in range(draw.randint(1, 9))] for _ in range(80)]
    said = [[t if draw.random() < 0.6 else draw.choice(tags) for t in row] for row in truth]
    lines = [
        line
        for sentence in zip(truth, said, strict=True)
        for line in (*(f"w {true} {ours}" for true, ours in zip(*sentence, strict=True)), "")
    ]
    theirs = conlleval.evaluate(lines)["overall"]["chunks"]
    found = np.sum([metrics.entity_counts(a, b) for a, b in zip(truth, said, strict=True)], axis=0)
    assert found[:3].tolist() == [theirs["stats"][name] for name in ("correct", "pred", "gold")]
    evals = {"f1": "entity_f1", "prec": "entity_precision", "rec": "entity_recall"}
    for name, ours in evals.items():
        assert metrics.TOKEN_CLASSIFICATION[ours](found[None], 0) == pytest.approx(
            theirs["evals"][name]
        )


def test_what_is_written_scores_as_in_sacrebleu_and_rouge_score():
    draw = random.Random(3)
    words = ["the", "cat", "sat", "on", "a", "mat", "dogs", "ran", "far", "away."]
    true = [" ".join(draw.choices(words, k=draw.randint(4, 12))) for _ in range(40)]
    said = [
        " ".join(w if draw.random() < 0.8 else draw.choice(words) for w in text.split())
        for text in true
    ]
    said[3] = ""
    metric_inputs = np.concatenate([np.zeros((40, 3)), overlaps(said, true)], axis=1)
    # All, and texts drawn with replacement, as an interval draws them.
    for chosen in (range(40), draw.choices(range(40), k=40)):
        ours, theirs = [said[i] for i in chosen], [true[i] for i in chosen]
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
        rouge = [scorer.score(t, s) for s, t in zip(ours, theirs, strict=True)]
        expected = {
            "bleu": sacrebleu.corpus_bleu(ours, [theirs]).score,
            "chrf": sacrebleu.corpus_chrf(ours, [theirs]).score,
        } | {name: np.mean([each[name].fmeasure for each in rouge]) for name in rouge[0]}
        found = {name: measure(metric_inputs[list(chosen)], 0) for name, measure in OVERLAP.items()}
        assert found == pytest.approx(expected, abs=1e-9)
    low, high = metrics.interval(OVERLAP["bleu"], metric_inputs, 0)
    assert low < OVERLAP["bleu"](metric_inputs, 0) < high


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_equals_scikit_learn(classes):
    draw = np.random.default_rng(classes)
    truth, said = draw.integers(classes, size=(2, 200))
    metric_inputs = np.stack([truth, said, draw.random(200)], axis=1)
    found = {name: m(metric_inputs, classes) for name, m in metrics.CLASSIFICATION.items()}
    macro = sklearn.metrics.f1_score(truth, said, average="macro")
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(truth, said),
        "f1": sklearn.metrics.f1_score(truth, said) if classes == 2 else macro,
        "f1_macro": macro,
        "matthews": sklearn.metrics.matthews_corrcoef(truth, said),
        "nats_per_label": metric_inputs[:, 2].mean(),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_regression_equals_scipy_and_says_0_where_there_is_no_correlation():
    metric_inputs = np.random.default_rng(0).normal(size=(50, 2))
    truth, said = metric_inputs.T
    found = {name: measure(metric_inputs, 0) for name, measure in metrics.REGRESSION.items()}
    expected = {
        "pearson": stats.pearsonr(truth, said).statistic,
        "spearman": stats.spearmanr(truth, said).statistic,
        "mean_squared_error": sklearn.metrics.mean_squared_error(truth, said),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    constant = np.stack([truth, np.ones(50)], axis=1)
    assert metrics.REGRESSION["pearson"](constant, 0) == 0.0


# SQuAD's own evaluation: case, punctuation and articles do not count, repeated words do.
ANSWERS = [
    ("the Cat!", ["cat"], (1.0, 1.0)),
    ("black cat", ["a cat", "the dog"], (0.0, 2 / 3)),
    ("cat cat", ["cat"], (0.0, 2 / 3)),
    ("", [], (1.0, 1.0)),
    ("cat", [], (0.0, 0.0)),
    ("", ["cat"], (0.0, 0.0)),
]


@pytest.mark.parametrize(("said", "answers", "scores"), ANSWERS)
def test_answers_are_scored_as_squad_scores_them(said, answers, scores):
    assert metrics.answer_scores(said, answers) == pytest.approx(scores)


def test_an_interval_of_a_mean_is_that_of_the_normal_distribution():
    metric_inputs = np.random.default_rng(3).normal(2.0, 1.0, size=(400, 1))
    low, high = metrics.interval(lambda e, _: e.mean(), metric_inputs, 0)
    half = 1.96 * metric_inputs.std() / 20
    assert (low, high) == pytest.approx(
        (metric_inputs.mean() - half, metric_inputs.mean() + half), abs=0.02
    )
