"""Metrics of tasks, by scikit-learn, SciPy and seqeval, and their bootstrap intervals. Each is a
function of inputs [N, ...], one entry for each prediction, and of the number of labels.
"""

import collections
import functools
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from lm.tasks.libraries import library
from lm.tasks.tag_scheme import entities

Metric = Callable[[np.ndarray, int], float]
DRAWS = 1000  # resamples of an interval
LEVEL = 0.95


def interval(metric: Metric, inputs: np.ndarray, classes: int) -> tuple[float, float]:
    """The bootstrap's 95 % percentile interval of a metric (Efron 1979).

    N predictions are drawn with replacement `DRAWS` times, always the same draws for the same N.
    """
    random, number = np.random.default_rng(0), len(inputs)
    draws = (random.integers(number, size=number) for _ in range(DRAWS))
    values = [metric(inputs[draw], classes) for draw in draws]
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_of(column: int) -> Metric:
    """The mean of a column."""
    return lambda inputs, classes: float(np.mean(inputs[:, column]))


def _ratio_of(above: int, below: int) -> Metric:
    """The sum of a column over that of another; 0 where the latter is 0."""
    return lambda inputs, classes: _ratio(inputs[:, above].sum(), inputs[:, below].sum())


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0


# --- classification: [N, 3] of true class, predicted class, nats -----------------------------


def _accuracy(inputs: np.ndarray, classes: int) -> float:
    return float(np.mean(inputs[:, 0] == inputs[:, 1]))


def _f1(inputs: np.ndarray, classes: int) -> float:
    """F1 of the second class where there are two; else the mean over classes."""
    if classes != 2:
        return _f1_macro(inputs, classes)
    f1_score = library("sklearn.metrics").f1_score
    return f1_score(inputs[:, 0], inputs[:, 1], pos_label=1, labels=[0, 1], zero_division=0)


def _f1_macro(inputs: np.ndarray, classes: int) -> float:
    f1_score = library("sklearn.metrics").f1_score
    return f1_score(inputs[:, 0], inputs[:, 1], average="macro", zero_division=0)


def _matthews(inputs: np.ndarray, classes: int) -> float:
    return library("sklearn.metrics").matthews_corrcoef(inputs[:, 0], inputs[:, 1])


def classification_report(inputs: np.ndarray, labels: Sequence[str]) -> str:
    """Scikit-learn's precision, recall and F1 by class."""
    return library("sklearn.metrics").classification_report(
        inputs[:, 0],
        inputs[:, 1],
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
    "nats_per_label": mean_of(2),
}


# --- regression: [N, 2] of the true and the predicted number ---------------------------------


def _correlation(inputs: np.ndarray, classes: int, name: str) -> float:
    """NaN-free: where one side does not vary, there is no correlation, and this says 0."""
    if np.ptp(inputs[:, 0]) == 0 or np.ptp(inputs[:, 1]) == 0:
        return 0.0
    from scipy import stats

    return float(getattr(stats, name)(inputs[:, 0], inputs[:, 1]).statistic)


def _mean_squared_error(inputs: np.ndarray, classes: int) -> float:
    return float(np.mean(np.square(inputs[:, 0] - inputs[:, 1])))


REGRESSION = {
    "pearson": functools.partial(_correlation, name="pearsonr"),
    "spearman": functools.partial(_correlation, name="spearmanr"),
    "mean_squared_error": _mean_squared_error,
}


# --- token classification: [N, 5] of entities correct, predicted and true; words correct and all -


def entity_counts(
    truth: Sequence[str], predicted: Sequence[str], scheme: str = "iob2"
) -> list[int]:
    """Of one sentence: entities correct (type and both ends), predicted, and true; words correct,
    and all.

    Entities are those of `lm.tasks.tag_scheme.entities`.
    """
    true, found = entities(truth, scheme), entities(predicted, scheme)
    correct = sum(a == b for a, b in zip(truth, predicted, strict=True))
    return [len(true & found), len(found), len(true), correct, len(truth)]


def _entity_f1(inputs: np.ndarray, classes: int) -> float:
    correct, predicted, true = inputs[:, :3].sum(axis=0)
    return _ratio(2 * correct, predicted + true)


WORD_TAGS = {"word_accuracy": _ratio_of(3, 4)}  # of tags that mark no entities
TOKEN_CLASSIFICATION = {
    "entity_f1": _entity_f1,
    "entity_precision": _ratio_of(0, 1),
    "entity_recall": _ratio_of(0, 2),
    **WORD_TAGS,
}


# --- extractive question answering: [N, 6], see `ExtractiveQA.metric_inputs` ------------------


def answer_scores(predicted: str, answers: Sequence[str]) -> list[float]:
    """Exact match and F1 of words against the closest of the answers, as SQuAD counts them.

    Case, punctuation and articles do not count (Rajpurkar et al. 2016, 1606.05250). Without
    answers, only an empty prediction is correct (SQuAD 2).
    """
    found = [_overlap(_words(predicted), _words(answer)) for answer in answers or [""]]
    return [max(each[0] for each in found), max(each[1] for each in found)]


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(predicted: list[str], true: list[str]) -> tuple[float, float]:
    exact = float(predicted == true)
    if not predicted or not true:
        return exact, exact
    both = sum((collections.Counter(predicted) & collections.Counter(true)).values())
    return exact, 2 * both / (len(predicted) + len(true))


def best_threshold(inputs: np.ndarray, column: int) -> tuple[float, float]:
    """The best mean score of any threshold for "no answer", and such a threshold.

    Where the difference is above it, the prediction is empty, which is correct where there is no
    answer; else the span, whose score is in the column. As SQuAD 2.0's script finds its best_exact
    and best_f1 (Rajpurkar et al. 2018, 1806.03822), but examples of one difference are never told
    apart.
    """
    differences, silent = inputs[:, 4], inputs[:, 5]
    order = np.argsort(differences, kind="stable")
    gains = np.cumsum((inputs[:, column] - silent)[order])
    levels = differences[order]
    scores = np.concatenate([[0.0], gains])
    # A threshold lies between two differences, or beyond all.
    between = np.concatenate([[-np.inf], levels]) < np.concatenate([levels, [np.inf]])
    between[-1] = True
    best = int(np.argmax(np.where(between, scores, -np.inf)))
    below = levels[best - 1] if best else levels[0] - 2.0
    above = levels[best] if best < len(levels) else below + 2.0
    threshold = below + 1.0 if np.isinf(above) else (below + above) / 2
    return float((silent.sum() + scores[best]) / len(inputs)), float(threshold)


EXTRACTIVE_QA = {
    "answer_f1": mean_of(1),
    "exact_match": mean_of(0),
    "best_f1": lambda inputs, classes: best_threshold(inputs, 3)[0],
    "best_exact": lambda inputs, classes: best_threshold(inputs, 2)[0],
}


# --- text generation: [N, 3] of nats, hits and tokens -----------------------------------------

TEXT_GENERATION = {"nats_per_token": _ratio_of(0, 2), "token_accuracy": _ratio_of(1, 2)}
