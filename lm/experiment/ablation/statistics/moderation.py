"""Shrinks the variances of a table's rows towards what is usual among them (empirical Bayes).

Smyth 2004, Linear models and empirical Bayes methods for assessing differential expression
(doi:10.2202/1544-6115.1027), as in the package limma.
"""

import collections
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.experiment.ablation.statistics.significance import two_sided_p


class Prior(NamedTuple):
    """What is known of a row's variance before its own seeds.

    1 / sigma^2 is distributed as chi-squared(df) / (df variance).

    Attributes:
      variance: the usual one.
      df: degrees of freedom; 0: nothing is known; infinite: all rows have the same variance.
    """

    variance: float = 0.0
    df: float = 0.0


class Variance(NamedTuple):
    """An estimate of a variance, and its degrees of freedom, more than 0."""

    value: float
    df: float

    @property
    def sd(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.value)


def sample_variance(sample: Sequence[float] | np.ndarray) -> Variance:
    """The unbiased one of n >= 2 values, with n - 1 degrees of freedom."""
    return Variance(float(np.var(sample, ddof=1)), len(sample) - 1)


def shared_noise(comparisons: Sequence[tuple[Hashable, Hashable]]) -> float:
    """The mean correlation of the logs of two sample variances, of differences of pairs of rows.

    Two pairs that have a row in common, such as their baseline, share its noise: with equal
    variances their differences correlate by 1/2, and the logs of their sample variances by about
    1/4. Others do not correlate. 0 for fewer than two pairs, of which none may be given twice.
    """
    m = len(comparisons)
    counts = collections.Counter(itertools.chain.from_iterable(comparisons)).values()
    return sum(n * (n - 1) for n in counts) / (m * (m - 1)) / 4 if m > 1 else 0.0


def fit_prior(variances: Sequence[Variance], shared: float = 0.0) -> Prior:
    """The prior of rows with these sample variances; nothing is known from fewer than two.

    With s^2 of d degrees of freedom, z = log s^2 and e = z - digamma(d/2) + log(d/2), df solves
    `trigamma(df/2) = var(e) - (1 - shared) mean(trigamma(d/2))`, and `log variance = mean(e) +
    digamma(df/2) - log(df/2)`; where the right side of the former is not positive, df is infinite.

    Args:
      variances: of the rows; those that are 0 are left out.
      shared: the mean correlation of two z, by which their spread is too small; see
        `shared_noise`.
    """
    from scipy.special import digamma, polygamma  # slow to import

    known = [each for each in variances if each.value > 0]
    if len(known) < 2:
        return Prior()
    s2, d = np.array(known, float).T
    e = np.log(s2) - digamma(d / 2) + np.log(d / 2)
    excess = float(np.var(e, ddof=1) - (1 - shared) * np.mean(polygamma(1, d / 2)))
    if excess <= 1e-6:
        return Prior(math.exp(np.mean(e)), math.inf)
    half = _inverse_trigamma(excess)
    return Prior(math.exp(np.mean(e) + digamma(half) - math.log(half)), 2 * half)


def _inverse_trigamma(value: float) -> float:
    """Solves trigamma(x) = value > 0 by Newton's method on 1 / trigamma, which is convex."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def moderate(variance: Variance, prior: Prior, most: float = math.inf) -> Variance:
    """A row's variance, shrunk: `(df0 s0^2 + df s^2) / (df0 + df)`, with df0 + df degrees of
    freedom, but no more than `most`, those of all rows together.
    """
    if math.isinf(prior.df):
        return Variance(prior.variance, most)
    total = prior.df + variance.df
    value = (prior.df * prior.variance + variance.df * variance.value) / total
    return Variance(value, min(total, most))


def moderated_p(difference: float, variance: Variance, n: int) -> float:
    """Two-sided p-value of the moderated t-test: t = difference / (sd / sqrt(n))."""
    if not variance.value:
        return 1.0
    return two_sided_p(difference * math.sqrt(n) / variance.sd, variance.df)


def far_seeds(differences: Mapping[int, float], prior: Prior, level: float) -> tuple[int, ...]:
    """The seeds whose difference is far from those of the row's other seeds.

    Each of n >= 3 seeds is tested against the others: `t = (d - mean of others) / (sd of others
    sqrt(1 + 1 / (n - 1)))`, with a moderated variance of n - 2 + df0 degrees of freedom. With
    Bonferroni for n, a row of normal differences has any far seed with probability `level` at most.
    """
    n, d = len(differences), np.array([*differences.values()], float)
    if n < 3:
        return ()
    means = (d.sum() - d) / (n - 1)  # of the others
    others = np.maximum(((d - d.mean()) ** 2).sum() - (d - means) ** 2 * (n - 1) / n, 0) / (n - 2)
    usual = [moderate(Variance(float(each), n - 2), prior) for each in others]
    errors = np.array([each.sd for each in usual]) * math.sqrt(1 + 1 / (n - 1))
    known = errors > 8 * np.finfo(float).eps * np.abs(d).max()
    t = np.abs(d - means) / np.where(known, errors, math.inf)
    p = [n * two_sided_p(each, usual[0].df) for each in t]
    return tuple(seed for seed, each in zip(differences, p, strict=True) if each <= level)
