"""Power, equivalence and moderated variances agree with oracles and with simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lm.experiment.ablation.statistics.absolute import two_way_interval
from lm.experiment.ablation.statistics.moderation import (
    Prior,
    Variance,
    far_seeds,
    fit_prior,
    moderate,
    moderated_p,
    sample_variance,
    shared_noise,
)
from lm.experiment.ablation.statistics.power import power, seeds_needed, smallest_effect
from lm.experiment.ablation.statistics.ranks import rank_rows
from lm.experiment.ablation.statistics.row_tests import compare_rows
from lm.experiment.ablation.statistics.significance import equivalence_p, paired_t_test


@pytest.mark.parametrize(("n", "comparisons"), [(3, 1), (5, 31), (10, 6)])
@pytest.mark.parametrize("effect", [0.3, 2.0])
def test_power_at_a_known_variance_is_that_of_the_noncentral_t(n, comparisons, effect):
    limit, shift = stats.t.isf(0.025 / comparisons, n - 1), effect * math.sqrt(n) / 1.5
    oracle = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
    found = power(effect, Variance(1.5**2, math.inf), n, comparisons)
    assert found == pytest.approx(oracle, abs=2e-3)


def test_the_smallest_effects_that_were_found_before_come_out_again():
    # 4.3 standard deviations with 5 seeds and 32 rows, 16.4 with 3 seeds and 26 rows
    known = Variance(1.0, math.inf)
    assert smallest_effect(known, 5, 31) == pytest.approx(4.3, abs=0.1)
    assert smallest_effect(known, 3, 25) == pytest.approx(16.4, abs=0.1)
    assert smallest_effect(known, 1, 1) is None


def test_an_estimated_variance_asks_for_more_than_a_known_one():
    effects = [smallest_effect(Variance(1.0, df), 5, 10) for df in (4, 20, 100, math.inf)]
    assert effects == sorted(effects, reverse=True)


@pytest.mark.parametrize("comparisons", [1, 20])
def test_the_seeds_that_an_effect_needs_are_the_fewest_that_find_it(comparisons):
    variance = Variance(0.01**2, 8)
    n = seeds_needed(0.012, variance, comparisons)
    assert power(0.012, variance, n, comparisons) >= 0.8
    assert power(0.012, variance, n - 1, comparisons) < 0.8
    assert seeds_needed(1e-9, variance, comparisons) is None


def test_equivalence_is_two_one_sided_tests_of_scipy():
    row, base = np.random.default_rng(0).normal(size=(2, 8)) * 0.3
    found = equivalence_p(paired_t_test(dict(enumerate(row)), dict(enumerate(base))), 0.4)
    one = stats.ttest_1samp(row - base, -0.4, alternative="greater").pvalue
    other = stats.ttest_1samp(row - base, 0.4, alternative="less").pvalue
    assert found == pytest.approx(max(one, other))


@pytest.mark.parametrize("df", [3.0, 10.0])
def test_a_prior_is_found_again_in_many_rows(df):
    random, d = np.random.default_rng(1), 4
    true = 2.0 * df / random.chisquare(df, size=20_000)
    prior = fit_prior([Variance(v, d) for v in true * random.chisquare(d, size=20_000) / d])
    assert prior.variance == pytest.approx(2.0, rel=0.05)
    assert prior.df == pytest.approx(df, rel=0.1)


def test_variances_share_noise_as_far_as_their_pairs_have_a_row_in_common():
    assert shared_noise([("a", "base"), ("b", "base"), ("c", "base")]) == 0.25
    assert shared_noise([("a", "one"), ("b", "other")]) == shared_noise([("a", "one")]) == 0
    assert shared_noise([("a", "one"), ("b", "one"), ("c", "other"), ("d", "other")]) == 0.25 / 3
    pairs = list(itertools.combinations(range(4), 2))  # of 15 twos of pairs 3 have no row in common
    assert shared_noise(pairs) == pytest.approx(0.25 * 12 / 15)
    base, one, other = np.random.default_rng(5).normal(size=(3, 4000, 30))
    logs = [np.log(np.var(row - base, axis=1)) for row in (one, other)]
    assert np.corrcoef(logs)[0, 1] == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("baselines", "df"), [("aaa", 6 / (1 + 2 / 4)), ("abc", 6)])
def test_baselines_of_their_own_leave_more_degrees_of_freedom_than_a_common_one(baselines, df):
    differences = (0.01, -0.02, 0.01)  # of all rows, so that all have one variance
    rows = dict.fromkeys("abc", dict.fromkeys(range(3), 2.0))
    rows |= {row: {s: 2 + d for s, d in enumerate(differences)} for row in "xyz"}
    found = compare_rows(rows, dict(zip("xyz", baselines, strict=True)))
    usual = fit_prior(3 * [sample_variance(differences)])
    effect = smallest_effect(Variance(usual.variance, df), 3, 3)
    assert [each.smallest_effect for each in found.values()] == pytest.approx(3 * [effect])


def test_rows_of_one_variance_are_pooled_and_a_single_row_stands_alone():
    own = Variance(3.0, 4)
    assert math.isinf(fit_prior(3 * [own]).df)
    assert fit_prior([own]) == Prior()
    assert moderate(own, Prior()) == own
    assert moderate(own, Prior(1.0, 4)) == Variance(2.0, 8)
    assert moderate(own, Prior(1.0, math.inf), most=12) == Variance(1.0, 12)


def test_without_a_prior_the_moderated_t_is_the_paired_one():
    row, base = np.random.default_rng(2).normal(size=(2, 6))
    variance = moderate(sample_variance(row - base), Prior())
    found = moderated_p(float(np.mean(row - base)), variance, 6)
    assert found == pytest.approx(stats.ttest_rel(row, base).pvalue)


def test_a_far_seed_is_called_so_as_often_by_chance_as_the_level_says():
    random, tables = np.random.default_rng(3), 1000
    samples = random.normal(size=(tables, 5))
    false = sum(bool(far_seeds(dict(enumerate(row)), Prior(), 0.05)) for row in samples)
    assert false <= stats.binom.ppf(0.999, tables, 0.05)
    assert far_seeds({0: 0.0, 1: 0.1, 2: -0.1, 3: 0.05, 4: 9.0}, Prior(), 0.05) == (4,)
    assert far_seeds({0: 0.0, 1: 9.0}, Prior(), 0.05) == ()


def test_the_interval_of_a_value_counts_seeds_and_documents():
    random = np.random.default_rng(4)
    sizes = np.full(50, 100.0)
    seeds, documents = random.normal(size=(4, 1)), random.normal(size=50)
    of_seeds, of_documents = sizes * (2 + seeds), sizes * np.tile(2 + documents, (4, 1))
    low, high = two_way_interval(of_seeds, sizes)
    half = stats.t.ppf(0.975, 3) * np.std(seeds, ddof=1) / 2
    assert (low, high) == pytest.approx((2 + seeds.mean() - half, 2 + seeds.mean() + half))
    low, high = two_way_interval(of_documents, sizes)
    half = stats.t.ppf(0.975, 49) * np.std(documents, ddof=1) / 50**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.03)
    low, high = two_way_interval(of_seeds + of_documents, sizes)
    assert (high - low) ** 2 > (2 * half) ** 2


def test_ranks_of_rows_that_share_no_seed_are_unknown():
    assert rank_rows({}) == {}
    assert rank_rows({"a": {0: 1.0}, "b": {1: 1.0}}) == {}
    assert rank_rows({"a": {0: 1.0}, "b": {0: 2.0}})["b"] == (2, 1, 2)
