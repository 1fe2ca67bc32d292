"""Metrics of generated texts against references: BLEU and chrF of sacrebleu and ROUGE of
rouge-score.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.tasks.libraries import library
from lm.tasks.metrics import mean_of

_ROUGE = ("rouge1", "rouge2", "rougeL")
_BLEU, _CHRF = slice(0, 10), slice(10, 28)  # columns of `overlaps`; those of ROUGE follow


@functools.cache
def _scorers() -> tuple[Any, Any, Any]:
    metrics = library("sacrebleu.metrics")
    return metrics.BLEU(), metrics.CHRF(), library("rouge_score.rouge_scorer").RougeScorer(_ROUGE)


def overlaps(predicted: Sequence[str], true: Sequence[str]) -> np.ndarray:
    """What each of N texts and its reference have in common, [N, 31]; predicted may be empty.

    Ten lengths and counts of word n-grams (BLEU), eighteen of characters (chrF), three F-measures
    (ROUGE, which knows the letters a to z and digits alone).
    """
    bleu, chrf, rouge = _scorers()
    # What sacrebleu's own bootstrap resamples.
    counts = [
        each._extract_corpus_statistics(list(predicted), [list(true)]) for each in (bleu, chrf)
    ]
    scores = [rouge.score(reference, text) for text, reference in zip(predicted, true, strict=True)]
    measures = [[score[name].fmeasure for name in _ROUGE] for score in scores]
    return np.concatenate([np.asarray(each, float) for each in (*counts, measures)], axis=1)


def _bleu(inputs: np.ndarray, classes: int) -> float:
    """Of all texts together, 0 to 100 (Papineni et al. 2002; Post 2018, 1804.08771)."""
    return _of_sums(0, inputs[:, -31:][:, _BLEU])


def _chrf(inputs: np.ndarray, classes: int) -> float:
    """F2 of character n-grams of all texts together, 0 to 100 (Popovic 2015)."""
    return _of_sums(1, inputs[:, -31:][:, _CHRF])


def _of_sums(which: int, counts: np.ndarray) -> float:
    totals = counts.sum(axis=0).astype(int).tolist()
    return float(_scorers()[which]._compute_score_from_stats(totals).score)


# Of ROUGE, the mean F-measure of the texts, 0 to 1 (Lin 2004).
OVERLAP = {"bleu": _bleu, "chrf": _chrf} | {
    name: mean_of(number - len(_ROUGE)) for number, name in enumerate(_ROUGE)
}
