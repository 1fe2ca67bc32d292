"""Compares the rows of an ablation with its baseline, from the `result.json` of every point.

Points of one seed saw the same batches, so rows are compared within seeds. Points without a result
are listed with the reason.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lm.errors import UserError
from lm.experiment.ablation.statistics.absolute import BY_DOCUMENT, value_interval
from lm.experiment.ablation.statistics.groups import find_baselines
from lm.experiment.ablation.statistics.notes import notes
from lm.experiment.ablation.statistics.point_result import (
    PointResult,
    comparable,
    read_result,
    refuse,
)
from lm.experiment.ablation.statistics.ranks import rank_rows
from lm.experiment.ablation.statistics.row_tests import RowTest, compare_rows
from lm.experiment.ablation.statistics.rows import Row, Table
from lm.experiment.ablation.statistics.significance import LEVEL, verdict
from lm.experiment.point_list import Planned
from lm.experiment.primary_metric import unit


def tabulate(
    points: Sequence[Planned],
    *,
    metric: str = "eval/bits_per_byte",
    baseline: str | None = None,
    against: Sequence[str] = (),
    better: Literal["lower", "higher"] = "lower",
    margin: float | None = None,
    matched: str = "",
    protocol: Literal["confirm", "screen"] = "confirm",
) -> Table:
    """Reads the results of points and compares every row with the baseline, the first by default.

    Verdicts are Holm-corrected over all rows but the baseline, including those not finished yet.
    Instead of a verdict a row is "missing" if none of its seeds has finished, "failed seed" if it
    or the baseline lost one to an error or a non-finite metric (the rest would be a biased sample),
    "not comparable" if the two differ in the tokens that they have seen, the data or the held-out
    text, and "in progress (3 of 5)" if seeds of the two are not finished. A row that is not
    separable is "equivalent within" the margin if two one-sided tests say so, and "unstable" if one
    of its seeds is far from the others.

    Args:
      points: rows and seeds.
      metric: of result.json.
      baseline: its label; None: the first row's.
      against: config keys that group rows; each is compared with the first row of its own group.
      better: whether "lower" or "higher" values are.
      margin: the largest difference that does not matter, for tests of equivalence; None: none.
      matched: the quantity in which rows were made equal, so that tokens seen may differ; "": none.
      protocol: "screen" gives ranks with intervals instead of verdicts.

    Raises:
      UserError: no points, a point given twice, an unknown baseline, or one with groups, groups of
        unknown keys or of single rows, or a metric that no finished point has.
    """
    labels = list(dict.fromkeys(point.row for point in points))
    if not labels or baseline not in (None, *labels):
        known = ", ".join(labels) or "none, the sweep is empty"
        raise UserError(f"baseline {baseline!r} is not a row of this sweep; rows: {known}")
    if baseline is not None and against:
        raise UserError(
            f"--baseline and --against={','.join(against)} exclude each other; give one"
        )
    first = labels[0] if baseline is None else baseline
    bases = {label: first for label in labels if label != first}
    if against:
        bases = find_baselines(points, against)
    ordered = sorted(points, key=lambda point: (labels.index(point.row), point.seed))
    runs = [read_result(point, metric) for point in ordered]
    refuse(runs, metric)
    groups = {label: [run for run in runs if run.point.row == label] for label in labels}
    values = {
        label: {run.point.seed: float(run.result[metric]) for run in group if run.result}
        for label, group in groups.items()
    }
    planned = {row: len(_shared_seeds(groups[row], groups[base])) for row, base in bases.items()}
    tests = compare_rows(values, bases, planned, margin)
    obstacles = {k: _obstacle(groups[k], groups[bases.get(k, k)], matched) for k in labels}
    if protocol == "screen":
        ranked = {k: row for k, row in values.items() if not obstacles[k]}
        ranks = rank_rows(ranked, better)
        verdicts = {k: obstacles[k] or str(ranks.get(k, "no shared seed")) for k in labels}
    else:
        ranks = {}
        verdicts = {k: obstacles[k] or _verdict(test, better, margin) for k, test in tests.items()}
    rows = [
        _row(
            groups[label],
            values[label],
            tests.get(label, RowTest()),
            baseline=bases.get(label, ""),
            verdict=verdicts.get(label, "baseline"),
            rank=ranks.get(label),
            value_interval=_value_interval(groups[label]) if metric == BY_DOCUMENT else None,
        )
        for label in labels
    ]
    missing = tuple(f"{run.name}: {run.problem}" for run in runs if not run.result)
    table = Table(
        metric,
        unit(metric),
        better,
        first,
        tuple(rows),
        missing=missing,
        margin=margin,
        protocol=protocol,
        against=tuple(against),
        matched=matched,
        comparisons=len(bases),
    )
    return dataclasses.replace(table, notes=notes(table, [run for run in runs if run.result]))


def _value_interval(group: Sequence[PointResult]) -> tuple[float, float] | None:
    return value_interval([run.point.workdir for run in group if run.result])


def _shared_seeds(group: Sequence[PointResult], base: Sequence[PointResult]) -> set[int]:
    """The seeds that are planned for both."""
    return {run.point.seed for run in group} & {run.point.seed for run in base}


def _obstacle(group: Sequence[PointResult], base: Sequence[PointResult], matched: str) -> str:
    """Why a row has no verdict, or the empty string."""
    both, done = [*group, *base], [run for run in (*group, *base) if run.result]
    if not any(run.result for run in group):
        return "missing"
    if any(run.failed for run in both):
        return "failed seed"
    if not comparable(done, matched):
        return "not comparable"
    planned = _shared_seeds(group, base)
    finished = planned - {run.point.seed for run in both if not run.result}
    return f"in progress ({len(finished)} of {len(planned)})" if finished < planned else ""


def _verdict(found: RowTest, better: str, margin: float | None) -> str:
    word = verdict(found.test, found.p_holm, better)
    if word == "not separable" and margin and found.p_equivalent <= LEVEL:
        return f"equivalent within {margin:g}"
    return "unstable" if word == "not separable" and found.far_seeds else word


def _row(
    group: Sequence[PointResult], values: Mapping[int, float], found: RowTest, **given: Any
) -> Row:
    done, sample, n = [run for run in group if run.result], tuple(values.values()), len(values)

    def median(key: str) -> Any:
        known = [run.result[key] for run in done if run.result.get(key) is not None]
        return (known[0] if len(set(known)) == 1 else statistics.median(known)) if known else None

    costs = ("parameters", "trained_parameters", "flops_per_token", "memory", "seconds")
    return Row(
        label=group[0].point.row,
        n=n,
        seeds=tuple(values),
        values=sample,
        workdirs=tuple(run.point.workdir for run in done),
        mean=statistics.fmean(sample) if n else None,
        standard_error=statistics.stdev(sample) / math.sqrt(n) if n > 1 else None,
        missing=len(group) - n,
        **found.test._asdict(),
        **{key: value for key, value in found._asdict().items() if key != "test"},
        **{key: median(key) for key in costs},
        **given,
    )
