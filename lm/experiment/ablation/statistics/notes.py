"""The notes below a table: what its numbers mean, what it could have found, and warnings."""

import statistics
from collections.abc import Callable, Sequence

from lm.errors import counted
from lm.experiment.ablation.statistics.point_result import PointResult, criteria, mixture, spread
from lm.experiment.ablation.statistics.rows import Row, Table
from lm.experiment.ablation.statistics.significance import LEVEL


def notes(table: Table, done: Sequence[PointResult]) -> tuple[str, ...]:
    """The notes of a table whose points `done` are finished."""
    return (
        *_meaning(table),
        *_power(table),
        *_warnings(table, done),
        *_made_with(done, table.matched),
    )


def _meaning(table: Table) -> list[str]:
    counted = any(row.value_interval for row in table.rows)
    documents = " [95 % interval over other seeds and other held-out documents]"
    found = [
        f"Metric: {table.metric}, {table.better} is better; mean ± standard error over n seeds"
        f"{documents * counted}.",
        f"Difference: row minus {table.compared_with} within seeds [95 % Student-t interval].",
    ]
    if table.protocol == "screen":
        return [
            *found,
            "Rank: by the mean; all intervals together hold the true ranks in 95 % of screens "
            "(moderated t-tests of all pairs of rows, Holm). A screen has no verdicts: confirm a "
            "shortlist of its rows with other seeds.",
        ]
    found.append(
        "Verdict: paired t-tests with a 5 % chance of any false one among all rows (Holm); a row "
        "can be not separable although its own interval excludes zero."
    )
    if has_moderated(table):
        found.append(
            "Moderated p: of t-tests whose variances are shrunk towards those of all rows (Smyth "
            "2004), adjusted for all rows (Holm); no verdict depends on it."
        )
    if table.margin:
        found.append(
            f"Equivalent within {table.margin:g}: two one-sided t-tests (Schuirmann 1987) with a 5 "
            "% chance of any false one among all rows (Holm)."
        )
        both = [
            row.label
            for row in table.rows
            if row.verdict in ("better", "worse") and row.p_equivalent <= LEVEL
        ]
        if both:
            found[-1] += f" So are {', '.join(both)}, although better or worse."
    return found


def has_moderated(table: Table) -> bool:
    """Whether there are rows enough to shrink their variances towards each other."""
    return table.protocol != "screen" and any(row.p_moderated is not None for row in table.rows)


def _power(table: Table) -> list[str]:
    """What the table could find."""
    rows = [row for row in table.rows if row.smallest_effect is not None]
    if not rows or table.protocol == "screen":
        return []
    effects = [row.smallest_effect for row in rows if row.smallest_effect is not None]
    found = (
        f"Smallest effect: among {counted(table.comparisons, 'comparison')}, a difference "
        f"of {_range(effects, lambda value: f'{value:.2g}')} is found with a probability of 80 %"
    )
    if not table.margin:
        return [f"{found}."]
    needed = [float("inf") if row.seeds_needed is None else row.seeds_needed for row in rows]
    seeds = _range(needed, lambda value: f"{value:.0f}" if value < 1e9 else "over 10,000", "seeds")
    return [f"{found}; one of {table.margin:g} needs {seeds}."]


def _range(values: Sequence[float], form: Callable[[float], str], unit: str = "") -> str:
    """The median and, where there are others, the ends."""
    middle, *ends = (form(f(values)) for f in (statistics.median_high, min, max))
    middle = f"{middle} {unit}".rstrip()
    return middle if len(set(ends)) == 1 else f"{middle} ({' to '.join(ends)} by row)"


def _warnings(table: Table, done: Sequence[PointResult]) -> list[str]:
    found = []
    seeds = {row.label: row.seeds for row in table.rows}
    for row in table.rows:
        if row.pairs and row.seeds != seeds[row.baseline]:
            found.append(f"WARNING: {row.label}: means are over unlike seeds; see the difference.")
        own = (run.result.items() for run in done if run.point.row == row.label)
        if len({tuple(i for i in items if i[0].startswith("eval/")) for items in own}) < row.n:
            found.append(f"WARNING: {row.label} has one value for several seeds; are they used?")
        if row.far_seeds:
            found.append(_far(row, next(r for r in table.rows if r.label == row.baseline)))
    return found


def _far(row: Row, base: Row) -> str:
    own, other = (dict(zip(r.seeds, r.values, strict=True)) for r in (row, base))
    differences = {seed: own[seed] - other[seed] for seed in row.pairs}
    far = ", ".join(f"{differences.pop(seed):+.3g} in seed {seed}" for seed in row.far_seeds)
    near = f"{min(differences.values()):+.3g} to {max(differences.values()):+.3g}"
    return f"WARNING: {row.label} is unstable: its difference is {far}, and {near} in the others."


def _made_with(done: Sequence[PointResult], matched: str) -> list[str]:
    """What the runs have in common, and a warning of what they have not."""
    versions = {name for run in done for name in run.result.get("versions") or ()}
    must = [key for key in criteria(done, matched) if any(key in run.result for run in done)]
    usual = ["steps", "batch_size", "device", "mesh", "data_hash", "commit", *sorted(versions)]
    found = {key: spread(done, key) for key in dict.fromkeys(must + usual) if done}
    free = {"steps", "batch_size"} - set(must)
    unlike = {k: v for k, v in found.items() if len(v) > 1 and k not in free}
    same = ", ".join(f"{k} {next(iter(v))}" for k, v in found.items() if len(v) == 1)
    lines = [f"WARNING: {key} is {mixture(values)}." for key, values in unlike.items()]
    return [*lines, f"All made with: {same or 'nothing in common'}."]
