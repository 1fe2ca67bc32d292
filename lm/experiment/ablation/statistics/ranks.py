"""Ranks the rows of a screen, with simultaneous intervals of their ranks."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lm.experiment.ablation.statistics.moderation import (
    fit_prior,
    moderate,
    moderated_p,
    sample_variance,
    shared_noise,
)
from lm.experiment.ablation.statistics.significance import LEVEL, holm


class Rank(NamedTuple):
    """A row's place among k, from 1, the best: by its mean, and the interval of the true one."""

    place: int
    low: int
    high: int

    def __str__(self) -> str:
        """In words of a table."""
        return f"rank {self.place} [{self.low}, {self.high}]"


def rank_rows(values: Mapping[str, Mapping[int, float]], better: str = "lower") -> dict[str, Rank]:
    """Ranks rows by their means over the seeds that all of them have; none where those are none.

    All k (k - 1) / 2 pairs of rows are compared within seeds by moderated t-tests, corrected by
    Holm. A row's interval begins after the rows that are surely better, and ends before those that
    are surely worse; all intervals together hold the true ranks with a probability of 0.95.
    (Mohamad, van Zwet, Goeman and Solari 2022, Simultaneous confidence intervals for ranks.)
    """
    seeds = sorted(set.intersection(*(set(row) for row in values.values()))) if values else []
    if not seeds:
        return {}
    table = np.array([[row[seed] for seed in seeds] for row in values.values()], float)
    table *= 1 if better == "lower" else -1
    k, n = table.shape
    above = _surely_lower(table) if n > 1 and k > 1 else np.zeros((k, k), bool)
    places = 1 + np.argsort(np.argsort(table.mean(axis=1), kind="stable"), kind="stable")
    lows, highs = 1 + above.sum(axis=0), k - above.sum(axis=1)
    columns = zip(places, lows, highs, strict=True)
    return {row: Rank(*map(int, each)) for row, each in zip(values, columns, strict=True)}


def _surely_lower(table: np.ndarray) -> np.ndarray:
    """Which rows [k] of values [k, n] are surely lower than which, [k, k]."""
    k, n = table.shape
    pairs = np.array(list(itertools.combinations(range(k), 2)))
    differences = table[pairs[:, 0]] - table[pairs[:, 1]]
    raw = [*map(sample_variance, differences)]
    prior = fit_prior(raw, shared_noise([*map(tuple, pairs)]))
    means, most = differences.mean(axis=1), (k - 1) * (n - 1)
    usual = [moderate(each, prior, most) for each in raw]
    p = holm([moderated_p(float(d), v, n) for d, v in zip(means, usual, strict=True)])
    found = np.zeros((k, k), bool)
    for (one, other), mean, adjusted in zip(pairs, means, p, strict=True):
        if adjusted <= LEVEL:
            found[(one, other) if mean < 0 else (other, one)] = True
    return found
