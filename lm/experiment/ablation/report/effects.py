"""Orders the rows of a table by their effect, for figures: the best first, with simultaneous
intervals and the range of an axis.
"""

import numpy as np

from lm.experiment.ablation.statistics.rows import Row, Table
from lm.experiment.ablation.statistics.significance import t_limit

Interval = tuple[float, float]


def by_effect(table: Table) -> list[Row]:
    """The rows but the baseline, the best difference first; those without one last."""
    sign = 1 if table.better == "lower" else -1
    rows = [row for row in table.rows if row.baseline]
    known = [row for row in rows if row.difference is not None]
    known.sort(key=lambda row: sign * (row.difference or 0.0))
    return known + [row for row in rows if row.difference is None]


def simultaneous(row: Row, comparisons: int) -> Interval | None:
    """The interval of a row's difference at level 1 - 0.05 / m, of m comparisons: all m intervals
    hold together with probability 0.95 (Bonferroni). None where the row has no interval.
    """
    if row.difference is None or row.difference_error is None:
        return None
    half = row.difference_error * t_limit(len(row.pairs) - 1, comparisons)
    return row.difference - half, row.difference + half


def effect_range(rows: list[Row]) -> Interval:
    """Limits of an axis with 0 and the rows' own intervals, that outliers do not stretch to more
    than three times what three fifths of the rows need.
    """
    ends = [(row.difference or 0.0, *(row.interval or ())) for row in rows if row.pairs]
    reach = [max(map(abs, each)) for each in ends]
    if not any(reach):
        return -1.0, 1.0
    most = min(max(reach), 3 * float(np.quantile([each for each in reach if each], 0.6)))
    low = max(-most, min(0.0, *(min(each) for each in ends)))
    high = min(most, max(0.0, *(max(each) for each in ends)))
    margin = 0.06 * (high - low)
    return low - margin, high + margin
