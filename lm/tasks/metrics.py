"""How good are predictions? Metrics of the libraries that the field quotes (scikit-learn, SciPy,
seqeval, sacrebleu, rouge-score), each a function of evidence [N, ...], one entry a prediction, and
of the number of labels; and how far chance could move them.
"""

import collections
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.tasks.libraries import library
from lm.tasks.tag_scheme import entities

DRAWS = 1000  # resamples of an interval
LEVEL = 0.95


def interval(measure: Any, evidence: np.ndarray, classes: int) -> tuple[float, float]:
    """The bootstrap's 95 % percentile interval of a measure (Efron 1979).

    N predictions are drawn with replacement `DRAWS` times, always the same draws for the same N.
    """
    random, number = np.random.default_rng(0), len(evidence)
    draws = (random.integers(number, size=number) for _ in range(DRAWS))
    values = [measure(evidence[draw], classes) for draw in draws]
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# --- classification: [N, 3] of true class, predicted class, nats -----------------------------


def _accuracy(evidence: np.ndarray, classes: int) -> float:
    return float(np.mean(evidence[:, 0] == evidence[:, 1]))


def _f1(evidence: np.ndarray, classes: int) -> float:
    """F1 of the second class where there are two; else the mean over classes."""
    if classes != 2:
        return _f1_macro(evidence, classes)
    f1_score = library("sklearn.metrics").f1_score
    return f1_score(evidence[:, 0], evidence[:, 1], pos_label=1, labels=[0, 1], zero_division=0)


def _f1_macro(evidence: np.ndarray, classes: int) -> float:
    f1_score = library("sklearn.metrics").f1_score
    return f1_score(evidence[:, 0], evidence[:, 1], average="macro", zero_division=0)


def _matthews(evidence: np.ndarray, classes: int) -> float:
    return library("sklearn.metrics").matthews_corrcoef(evidence[:, 0], evidence[:, 1])


def _nats(evidence: np.ndarray, classes: int) -> float:
    return float(np.mean(evidence[:, 2]))


def classification_report(evidence: np.ndarray, labels: Sequence[str]) -> str:
    """Scikit-learn's precision, recall and F1 by class."""
    return library("sklearn.metrics").classification_report(
        evidence[:, 0],
        evidence[:, 1],
        labels=range(len(labels)),
        target_names=list(labels),
        digits=4,
        zero_division=0,
    )


CLASSIFICATION = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "nats_per_label": _nats,
}


# --- regression: [N, 2] of the true and the predicted number ---------------------------------


def _correlation(name: str, evidence: np.ndarray) -> float:
    """NaN-free: where one side does not vary, there is no correlation, and this says 0."""
    if np.ptp(evidence[:, 0]) == 0 or np.ptp(evidence[:, 1]) == 0:
        return 0.0
    from scipy import stats

    return float(getattr(stats, name)(evidence[:, 0], evidence[:, 1]).statistic)


def _pearson(evidence: np.ndarray, classes: int) -> float:
    return _correlation("pearsonr", evidence)


def _spearman(evidence: np.ndarray, classes: int) -> float:
    return _correlation("spearmanr", evidence)


def _mean_squared_error(evidence: np.ndarray, classes: int) -> float:
    return float(np.mean(np.square(evidence[:, 0] - evidence[:, 1])))


REGRESSION = {
    "pearson": _pearson,
    "spearman": _spearman,
    "mean_squared_error": _mean_squared_error,
}


# --- tagging: [N, 5] of entities right, said and true; words right and all --------------------


def entity_counts(truth: Sequence[str], said: Sequence[str], scheme: str = "iob2") -> list[int]:
    """Of one sentence: entities right (type and both ends), said, and true; words right, and all.

    Entities are those of `lm.tasks.tag_scheme.entities`.
    """
    theirs, ours = entities(truth, scheme), entities(said, scheme)
    right = sum(a == b for a, b in zip(truth, said, strict=True))
    return [len(theirs & ours), len(ours), len(theirs), right, len(truth)]


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0


def _entity_f1(evidence: np.ndarray, classes: int) -> float:
    right, said, true = evidence[:, :3].sum(axis=0)
    return _ratio(2 * right, said + true)


def _entity_precision(evidence: np.ndarray, classes: int) -> float:
    return _ratio(evidence[:, 0].sum(), evidence[:, 1].sum())


def _entity_recall(evidence: np.ndarray, classes: int) -> float:
    return _ratio(evidence[:, 0].sum(), evidence[:, 2].sum())


def _word_accuracy(evidence: np.ndarray, classes: int) -> float:
    return _ratio(evidence[:, 3].sum(), evidence[:, 4].sum())


TAGGING = {
    "entity_f1": _entity_f1,
    "entity_precision": _entity_precision,
    "entity_recall": _entity_recall,
    "word_accuracy": _word_accuracy,
}
WORDS = {"word_accuracy": _word_accuracy}  # of tags that mark no entities


# --- answering: [N, 6], see `Answering.evidence` ----------------------------------------------


def answer_scores(said: str, answers: Sequence[str]) -> list[float]:
    """Exact match and F1 of words against the closest of the answers, as SQuAD counts them.

    Case, punctuation and articles do not count (Rajpurkar et al. 2016, 1606.05250). Without
    answers, only saying nothing is right (SQuAD 2).
    """
    found = [_overlap(_words(said), _words(answer)) for answer in answers or [""]]
    return [max(each[0] for each in found), max(each[1] for each in found)]


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(said: list[str], true: list[str]) -> tuple[float, float]:
    if not said or not true:
        return float(said == true), float(said == true)
    both = sum((collections.Counter(said) & collections.Counter(true)).values())
    return float(said == true), 2 * both / (len(said) + len(true))


def best_threshold(evidence: np.ndarray, column: int) -> tuple[float, float]:
    """The best mean score of any threshold for "no answer", and such a threshold.

    Where the difference is above it, nothing is said, which is right where there is no answer; else
    the span, whose score is in the column. As SQuAD 2.0's script finds its best_exact and best_f1
    (Rajpurkar et al. 2018, 1806.03822), but examples of one difference are never told apart.
    """
    differences, silent = evidence[:, 4], evidence[:, 5]
    order = np.argsort(differences, kind="stable")
    gains = np.cumsum((evidence[:, column] - silent)[order])
    levels = differences[order]
    scores = np.concatenate([[0.0], gains])
    # A threshold lies between two differences, or beyond all.
    between = np.concatenate([[-np.inf], levels]) < np.concatenate([levels, [np.inf]])
    between[-1] = True
    best = int(np.argmax(np.where(between, scores, -np.inf)))
    below = levels[best - 1] if best else levels[0] - 2.0
    above = levels[best] if best < len(levels) else below + 2.0
    threshold = below + 1.0 if np.isinf(above) else (below + above) / 2
    return float((silent.sum() + scores[best]) / len(evidence)), float(threshold)


ANSWERING = {
    "answer_f1": lambda evidence, classes: float(np.mean(evidence[:, 1])),
    "exact_match": lambda evidence, classes: float(np.mean(evidence[:, 0])),
    "best_f1": lambda evidence, classes: best_threshold(evidence, 3)[0],
    "best_exact": lambda evidence, classes: best_threshold(evidence, 2)[0],
}


# --- writing: [N, 3] of nats, hits and tokens -------------------------------------------------


def _nats_per_token(evidence: np.ndarray, classes: int) -> float:
    return _ratio(evidence[:, 0].sum(), evidence[:, 2].sum())


def _token_accuracy(evidence: np.ndarray, classes: int) -> float:
    return _ratio(evidence[:, 1].sum(), evidence[:, 2].sum())


WRITING = {"nats_per_token": _nats_per_token, "token_accuracy": _token_accuracy}
