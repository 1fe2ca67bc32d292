"""Power of a table: the smallest effect that it finds, and the seeds that an effect needs."""

import functools
import math

import numpy as np

from lm.experiment.ablation.statistics.moderation import Variance
from lm.experiment.ablation.statistics.significance import t_limit

POWER = 0.8  # probability with which the smallest effect is found
MOST_SEEDS = 10_000  # that are looked for
_NODES = (np.arange(100) + 0.5) / 100  # quantiles over which expectations are taken


def power(effect: float, variance: Variance, n: int, comparisons: int) -> float:
    """The probability that a paired t-test at level 0.05 / comparisons finds an effect.

    That is the level of Holm's first rejection, so a row whose effect stands alone is found so
    often, and others with it more often. The test has n - 1 degrees of freedom and the
    noncentrality `effect sqrt(n) / sigma`. The power is its expectation over what is known of the
    true variance, `sigma^2 = variance.value / q` with q ~ chi-squared(variance.df) / variance.df:
    power at the estimate itself would be too high, as a function that levels off.

    Args:
      effect: the true difference of a row.
      variance: of a difference within one seed, estimated.
      n: seeds, at least 2.
      comparisons: m, rows that are compared with a baseline.
    """
    if not variance.value:
        return float(effect != 0)
    df = _whole(variance.df)
    return _power(abs(effect) * math.sqrt(n) / variance.sd, n, comparisons, df)


def smallest_effect(variance: Variance, n: int, comparisons: int) -> float | None:
    """The effect that has a power of 0.8; None for fewer than two seeds."""
    if n < 2:
        return None
    units = _smallest(n, comparisons, _whole(variance.df))
    return units * variance.sd / math.sqrt(n)


def seeds_needed(effect: float, variance: Variance, comparisons: int) -> int | None:
    """The fewest seeds with which an effect has a power of 0.8; None: more than 10,000."""
    low, high = 1, 2  # power(low) is too small
    while power(effect, variance, high, comparisons) < POWER:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        found = power(effect, variance, middle, comparisons) >= POWER
        low, high = (low, middle) if found else (middle, high)
    return high


def _whole(df: float) -> float:
    """Degrees of freedom rounded down, so that few of them are computed."""
    return max(1, math.floor(df)) if df < 1000 else math.inf


@functools.lru_cache(4096)
def _smallest(n: int, comparisons: int, df: float) -> float:
    """The noncentrality, at the estimated variance, that has a power of 0.8."""
    from scipy.optimize import root_scalar

    def excess(log: float) -> float:
        return _power(math.exp(log), n, comparisons, df) - POWER

    return math.exp(root_scalar(excess, bracket=(-5, 40), xtol=1e-6).root)


def _power(noncentrality: float, n: int, comparisons: int, df: float) -> float:
    """By sums over quantiles of both variances; of the noncentral t that scipy has, `nctdtr` gives
    nan for few degrees of freedom.
    """
    from scipy.special import ndtr  # slow to import

    own, limit = _rooted(n - 1), _limit(n, comparisons)
    true = noncentrality * _rooted(df)[:, None]
    return float(np.mean(ndtr(true - limit * own) + ndtr(-true - limit * own)))


@functools.lru_cache(4096)
def _rooted(df: float) -> np.ndarray:
    """Quantiles of sqrt(chi-squared(df) / df)."""
    from scipy.special import gammaincinv

    return np.ones(1) if math.isinf(df) else np.sqrt(2 * gammaincinv(df / 2, _NODES) / df)


@functools.lru_cache(4096)
def _limit(n: int, comparisons: int) -> float:
    return t_limit(n - 1, comparisons)
