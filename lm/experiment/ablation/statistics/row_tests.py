"""Tests every row of a table against its baseline; all statistics of a table, from values alone."""

from collections.abc import Mapping
from typing import NamedTuple

from lm.experiment.ablation.statistics.moderation import (
    far_seeds,
    fit_prior,
    moderate,
    moderated_p,
    sample_variance,
    shared_noise,
)
from lm.experiment.ablation.statistics.power import seeds_needed, smallest_effect
from lm.experiment.ablation.statistics.significance import (
    LEVEL,
    PairedTest,
    equivalence_p,
    holm,
    paired_t_test,
)

Values = Mapping[int, float]  # a row's metric by seed


class RowTest(NamedTuple):
    """What the seeds say of a row against its baseline, among all m comparisons of the table.

    Attributes:
      test: the paired t-test.
      p_holm: its p-value, adjusted for all comparisons.
      p_moderated: that of the moderated t-test, likewise; no verdict depends on it. None without an
        interval, and of tables with fewer than three intervals.
      p_equivalent: that of the two one-sided tests, likewise; 1 without a margin.
      smallest_effect: the difference that is found with a probability of 0.8; None: no estimate.
      seeds_needed: seeds with which a difference as large as the margin is found with a probability
        of 0.8; None: no estimate, no margin, or too many.
      far_seeds: those whose difference is far from those of the row's other seeds.
    """

    test: PairedTest = PairedTest()
    p_holm: float = 1.0
    p_moderated: float | None = None
    p_equivalent: float = 1.0
    smallest_effect: float | None = None
    seeds_needed: int | None = None
    far_seeds: tuple[int, ...] = ()


def compare_rows(
    values: Mapping[str, Values],
    baselines: Mapping[str, str],
    planned: Mapping[str, int] | None = None,
    margin: float | None = None,
) -> dict[str, RowTest]:
    """Tests each row against its baseline.

    Three families of m tests are each corrected by Holm: of differences, of equivalence and of the
    moderated t. Each has any false rejection in at most one table in twenty.

    Smallest effect and seeds needed take the moderated variance of the row's differences, with at
    most `m (n - 1) / (1 + (m - 1) r)` degrees of freedom, as many as m sample variances have
    together that correlate by r on average: 1/4 with one baseline, and less with one for each
    group. A row has far seeds in at most one table in twenty by chance.

    Args:
      values: of each row, baselines too, by seed.
      baselines: of each row that is compared, the label of its baseline.
      planned: seeds of each row, for the power of unfinished rows; None: those that there are.
      margin: the largest difference that does not matter.
    """
    tests = {row: paired_t_test(values[row], values[base]) for row, base in baselines.items()}
    differences = {
        row: {seed: values[row][seed] - values[base][seed] for seed in tests[row].pairs}
        for row, base in baselines.items()
    }
    m = len(tests)
    known = [row for row, test in tests.items() if test.interval is not None]
    raw = {row: sample_variance([*differences[row].values()]) for row in known}
    shared = shared_noise([(row, baselines[row]) for row in known])
    prior = fit_prior([*raw.values()], shared)
    total = sum(variance.df for variance in raw.values())
    effects, needed, far = {}, {}, {}
    moderated = dict.fromkeys(tests, 1.0)
    for row, variance in raw.items():
        most = total / (1 + shared * (len(raw) - 1))
        usual = moderate(variance, prior, most)
        seeds = max(len(tests[row].pairs), (planned or {}).get(row, 0))
        effects[row] = smallest_effect(usual, seeds, m)
        needed[row] = seeds_needed(margin, usual, m) if margin else None
        far[row] = far_seeds(differences[row], prior, LEVEL / m)
        pooled = moderate(variance, prior, total)
        moderated[row] = moderated_p(tests[row].difference or 0.0, pooled, len(tests[row].pairs))
    adjusted = _holm({row: test.p for row, test in tests.items()})
    shrunk = _holm(moderated)
    equivalent = _holm({k: equivalence_p(t, margin) if margin else 1.0 for k, t in tests.items()})
    return {
        row: RowTest(
            test,
            adjusted[row],
            shrunk[row] if row in raw and len(raw) > 2 else None,
            equivalent[row],
            effects.get(row),
            needed.get(row),
            far.get(row, ()),
        )
        for row, test in tests.items()
    }


def _holm(p_values: Mapping[str, float]) -> dict[str, float]:
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))
