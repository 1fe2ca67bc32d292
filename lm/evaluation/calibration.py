"""Compares confidence with accuracy, in bins, and computes the expected calibration error."""

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """Predictions in bins of equal width by confidence, the probability of the likeliest outcome.

    Attributes:
      edges: [bins + 1]; bin b holds confidences above edges[b] and up to edges[b + 1].
      counts: predictions in each bin; means of empty bins are NaN.
      confidence, accuracy: means in each bin.
      error: expected calibration error, sum_b count_b / N |accuracy_b - confidence_b| (Naeini et
        al. 2015; Guo et al. 1706.04599).
      chance: the error that a perfectly calibrated model would show for want of predictions, about
        sum_b count_b / N sqrt(2 c_b / (pi count_b)), c_b the mean of confidence (1 - confidence):
        an error of this size is none.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float
    chance: float


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> Calibration:
    """Bins predictions.

    Args:
      confidence: [N], from 0 to 1.
      correct: [N], whether the likeliest outcome was the truth.
      bins: of equal width.
    """
    confidence = np.asarray(confidence, np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(places, weights=values, minlength=bins)

    count = np.bincount(places, minlength=bins)
    of_bins = np.where(count > 0, count, np.nan)
    means, hits = sums(confidence) / of_bins, sums(np.asarray(correct, np.float64)) / of_bins
    spread = sums(confidence * (1.0 - confidence)) / of_bins
    weights = count / max(len(confidence), 1)
    error = np.nansum(weights * np.abs(hits - means))
    chance = np.nansum(weights * np.sqrt(2.0 * spread / (np.pi * of_bins)))
    return Calibration(edges, count, means, hits, float(error), float(chance))
