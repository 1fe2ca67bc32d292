"""Paired tests of rows agree with oracles, and find nothing where there is nothing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm.experiment.ablation.statistics.significance import (
    holm,
    paired_t_test,
    t_limit,
    two_sided_p,
    verdict,
)


def seeds_of(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_comparison_is_the_paired_t_test_of_scipy(n):
    row, base = np.random.default_rng(n).normal(size=(2, n))
    found = paired_t_test(seeds_of(*row), seeds_of(*base))
    oracle = stats.ttest_rel(row, base)
    assert found.difference == pytest.approx(np.mean(row - base))
    assert found.difference_error == pytest.approx(stats.sem(row - base))
    assert found.interval == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    assert found.p == pytest.approx(oracle.pvalue)


def test_the_interval_is_that_of_a_hand_calculation():
    # differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653
    found = paired_t_test(seeds_of(2.0, 4.0, 6.0), seeds_of(1.0, 2.0, 3.0))
    assert found.difference == 2.0
    assert found.interval == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


@pytest.mark.parametrize("df", [1, 3.5, 30, 1e6, math.inf])
def test_limits_and_probabilities_of_t_are_those_of_scipy(df):
    oracle = stats.norm if math.isinf(df) else stats.t(df)
    for comparisons in (1, 31):
        limit = t_limit(df, comparisons)
        assert limit == pytest.approx(oracle.isf(0.025 / comparisons), rel=1e-10)
        assert two_sided_p(-limit, df) == pytest.approx(0.05 / comparisons, rel=1e-10)


def test_holm_adjusts_as_in_a_hand_made_example():
    # ascending: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04 raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=2, max_size=6))
def test_an_effect_of_the_seed_that_all_rows_share_changes_no_difference(drawn):
    row, base, effect = (seeds_of(*values) for values in zip(*drawn, strict=True))
    plain = paired_t_test(row, base)
    moved = paired_t_test(*({s: v[s] + effect[s] for s in v} for v in (row, base)))
    assert moved.difference == pytest.approx(plain.difference, abs=1e-12)
    if plain.interval and moved.interval:
        assert moved.interval == pytest.approx(plain.interval, abs=1e-10)


def null_verdicts(seed: int, tables: int, rows: int) -> int:
    """Simulate tables without any true difference; count those with a false verdict."""
    random, false = np.random.default_rng(seed), 0
    for _ in range(tables):
        n = int(random.integers(3, 6))
        noise = random.uniform(0.2, 2, size=(rows, 1))  # variants differ in their spread
        values = 2 + random.normal(size=n) + noise * random.normal(size=(rows, n))
        base, *others = (seeds_of(*row) for row in values)
        pairs = [paired_t_test(other, base) for other in others]
        adjusted = holm([pair.p for pair in pairs])
        words = [verdict(*each) for each in zip(pairs, adjusted, strict=True)]
        false += any(word in ("better", "worse") for word in words)
    return false


def test_without_true_differences_one_table_in_twenty_at_most_has_a_verdict():
    false = null_verdicts(seed=0, tables=2000, rows=5)
    assert false <= stats.binom.ppf(0.999, 2000, 0.05)
