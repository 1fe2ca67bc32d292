"""Significance of differences between rows: paired t-tests within seeds, corrected by Holm, and
tests of equivalence.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05  # of the intervals (each alone) and of the verdicts (all rows together)


class PairedTest(NamedTuple):
    """The comparison of a row with the baseline within the seeds that both have finished.

    Attributes:
      pairs: the seeds of both.
      difference: row minus baseline, mean over pairs; None without a test.
      difference_error: its standard error, sd / sqrt(n); None where there is no interval.
      interval: 95 % Student-t interval of the difference; None where there is none.
      p: two-sided p-value of the paired t-test; 1 where there is none.
    """

    pairs: tuple[int, ...] = ()
    difference: float | None = None
    difference_error: float | None = None
    interval: tuple[float, float] | None = None
    p: float = 1.0


def paired_t_test(values: Mapping[int, float], baseline: Mapping[int, float]) -> PairedTest:
    """Compares within seeds: `d_s = values[s] - baseline[s]` over the n seeds s that both have.

    difference = mean(d); interval = mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n); p is two-sided, of
    the paired Student t-test. n = 0 gives no difference; n = 1 gives no interval and p = 1. So do
    differences without spread (beyond rounding): seeds that change nothing are one run repeated n
    times.
    """
    seeds = tuple(sorted(values.keys() & baseline.keys()))
    if not seeds:
        return PairedTest()
    row, base = np.array([[each[seed] for seed in seeds] for each in (values, baseline)])
    difference, n = float(np.mean(row - base)), len(seeds)
    error = float(np.std(row - base, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error <= 8 * np.finfo(float).eps * max(np.abs(row).max(), np.abs(base).max()):
        return PairedTest(seeds, difference)
    half = error * t_limit(n - 1)
    interval = (difference - half, difference + half)
    return PairedTest(seeds, difference, error, interval, two_sided_p(difference / error, n - 1))


def t_limit(df: float, comparisons: int = 1) -> float:
    """The t above which a two-sided test at level 0.05 / comparisons rejects; an interval at level
    1 - 0.05 / comparisons reaches so many standard errors each way. df may be infinite.
    """
    from scipy.special import stdtrit  # slow to import

    return -float(stdtrit(df, LEVEL / comparisons / 2))


def two_sided_p(t: float, df: float) -> float:
    """P(|T| > |t|) of Student's T; with infinite df of the normal."""
    from scipy.special import stdtr

    return 2 * float(stdtr(df, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for m tests: reject where the adjusted one is <= the level.

    With p ascending, `adjusted_i = max over j <= i of min(1, (m - j + 1) p_j)`. The probability of
    any false rejection is then at most the level, for any dependence between the tests.
    (Holm 1979, A simple sequentially rejective multiple test procedure.)
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted[np.argsort(order)].tolist()


def equivalence_p(test: PairedTest, margin: float) -> float:
    """The p-value of two one-sided tests that a difference lies within +- margin.

    `p = max(P(T > (margin + d) / e), P(T > (margin - d) / e))` with the mean difference d, its
    standard error e, and Student's T of n - 1 degrees of freedom; small where the difference is
    surely within the margin. 1 where there is no interval.
    (Schuirmann 1987, doi:10.1007/BF01068419.)
    """
    if test.difference is None or test.difference_error is None:
        return 1.0
    from scipy.special import stdtr

    t = (abs(test.difference) - margin) / test.difference_error
    return float(stdtr(len(test.pairs) - 1, t))


def verdict(test: PairedTest, p_holm: float, better: str = "lower") -> str:
    """The verdict of a comparison in a few words, given its Holm-adjusted p-value."""
    if test.difference is None or len(test.pairs) < 2:
        return "one seed" if test.pairs else "no shared seed"
    if test.interval is None and test.difference == 0:
        return "identical"
    if test.interval is None or p_holm > LEVEL:
        return "not separable"
    return "better" if (test.difference < 0) == (better == "lower") else "worse"
