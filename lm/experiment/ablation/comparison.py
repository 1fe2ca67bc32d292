"""Compares the rows of an ablation with its baseline, from the `result.json` of every point.

Points of one seed saw the same batches, so rows are compared within seeds. Points without a result
are listed with the reason.
"""

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from etils import epath

from lm.errors import UserError
from lm.experiment.ablation.points import Point
from lm.experiment.ablation.significance import PairedTest, holm, paired_t_test, verdict
from lm.experiment.primary_metric import unit
from lm.training.metric_writer import with_nan

# Runs are compared only where these are equal.
_MUST_MATCH = ("steps", "batch_size", "held-out bytes", "held-out tokens", "held-out examples")


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant. Numbers are over its finished seeds; None means unknown."""

    label: str
    n: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]  # the metric, seed by seed
    workdirs: tuple[epath.Path, ...]
    mean: float | None
    standard_error: float | None  # of the mean; None with fewer than two seeds
    pairs: tuple[int, ...]  # the seeds that the baseline has finished too
    difference: float | None  # row minus baseline, mean over pairs
    interval: tuple[float, float] | None  # 95 %, of this difference alone
    p: float  # of the paired t-test; 1 where there is none
    p_holm: float  # the same, adjusted for all the rows
    verdict: str
    parameters: int | None
    trained_parameters: int | None
    flops_per_token: float | None
    tokens_per_second: float | None  # median over seeds
    memory: float | None  # bytes of the compiled step on a device, arguments and temporaries
    seconds: float | None  # wall time of a run, median over seeds
    missing: int  # points of this row without a usable result


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in the order of the points; notes; the points that are missing, and why."""

    metric: str
    unit: str
    better: str  # "lower" or "higher"
    baseline: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class _Run(NamedTuple):
    point: Point
    result: dict[str, Any]  # empty unless usable
    problem: str = ""  # why it is not usable

    @property
    def name(self) -> str:
        return f"{self.point.row} seed {self.point.seed}"


def tabulate(
    points: Sequence[Point],
    *,
    metric: str = "eval/bits_per_byte",
    baseline: str | None = None,
    better: Literal["lower", "higher"] = "lower",
) -> Table:
    """Reads the results of points and compares every row with the baseline, the first by default.

    Verdicts are Holm-corrected over all rows but the baseline, including those not finished yet.
    Instead of a verdict a row is "missing" if none of its seeds has finished, "failed seed" if it
    or the baseline lost one to an error or a non-finite metric (the rest would be a biased sample),
    and "not comparable" if the two differ in the number of steps, the batch size or the held-out
    data.

    Raises:
      UserError: no points, a point given twice, an unknown baseline, a metric that no finished
        point has, or points on different data.
    """
    labels = list(dict.fromkeys(point.row for point in points))
    if not labels or baseline not in (None, *labels):
        known = ", ".join(labels) or "none, the sweep is empty"
        raise UserError(f"baseline {baseline!r} is not a row of this sweep; rows: {known}")
    base = labels[0] if baseline is None else baseline
    ordered = sorted(points, key=lambda point: (labels.index(point.row), point.seed))
    runs = [_read(point, metric) for point in ordered]
    _refuse(runs, metric)
    groups = {label: [run for run in runs if run.point.row == label] for label in labels}
    done = {label: [run for run in group if run.result] for label, group in groups.items()}
    values = {k: {run.point.seed: float(run.result[metric]) for run in done[k]} for k in labels}
    tests = {k: paired_t_test(values[k], values[base]) for k in labels if k != base}
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))

    def verdict_of(label: str) -> str:
        if label == base:
            return "baseline"
        if not done[label]:
            return "missing"
        if any(run.problem.startswith("failed") for run in groups[label] + groups[base]):
            return "failed seed"
        if any(len(_spread(done[label] + done[base], key)) > 1 for key in _MUST_MATCH):
            return "not comparable"
        return verdict(tests[label], adjusted[label], better)

    rows = []
    for label in labels:
        test, adjusted_p = tests.get(label, PairedTest()), adjusted.get(label, 1.0)
        rows.append(_row(groups[label], values[label], test, adjusted_p, verdict_of(label)))
    missing = tuple(f"{run.name}: {run.problem}" for run in runs if not run.result)
    table = Table(metric, unit(metric), better, base, tuple(rows), missing=missing)
    return dataclasses.replace(table, notes=_notes(table, [run for run in runs if run.result]))


def _read(point: Point, metric: str) -> _Run:
    failure = point.workdir / "error.txt"
    if not (path := point.workdir / "result.json").exists():
        lines = failure.read_text().strip().splitlines() if failure.exists() else []
        return _Run(point, {}, f"failed, {lines[-1].strip()}" if lines else "not finished")
    try:
        result = with_nan(json.loads(path.read_text()))
        seed, value = result.get("seed", point.seed), result.get(metric, "absent")
    except (ValueError, AttributeError):
        return _Run(point, {}, f"unreadable, {path} is not a JSON object")
    if seed != point.seed:
        return _Run(point, {}, f"mislabelled, {path} is of seed {seed}")
    if value == "absent":
        return _Run(point, {}, f"{path} has no {metric!r}")
    if not (isinstance(value, int | float) and math.isfinite(value)):
        return _Run(point, {}, f"failed, {metric} is {value}")
    return _Run(point, (result.get("versions") or {}) | result | _held_out(result))


def _held_out(result: Mapping[str, Any]) -> dict[str, Any]:
    """The size of the held-out data, in bytes where known, so that tokenizers can be compared."""
    sizes = {name: result.get(f"eval/{name}") for name in ("bytes", "examples", "tokens")}
    return next(({f"held-out {k}": v} for k, v in sizes.items() if v is not None), {})


def _refuse(runs: Sequence[_Run], metric: str) -> None:
    """Raises UserError for points that no table can compare."""
    done = [run for run in runs if run.result]
    name, count = collections.Counter(run.name for run in runs).most_common(1)[0]
    if count > 1:
        raise UserError(f"{name} is given {count} times; give each point once")
    lacking = [run.problem for run in runs if run.problem.endswith(f"has no {metric!r}")]
    if lacking and not done:
        raise UserError(f"no finished point has the metric: {lacking[0]}; choose one it has")
    if len(found := _spread(done, "data_hash")) > 1:
        raise UserError(f"data_hash is {_mixture(found)}; run the points again on one corpus")


def _spread(runs: Sequence[_Run], key: str) -> dict[str, list[str]]:
    """Groups the names of runs by their result's value of `key`; the commonest first."""
    found = collections.defaultdict(list)
    for run in runs:
        found[json.dumps(run.result.get(key, "unknown")).strip('"')].append(run.name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _mixture(found: Mapping[str, Sequence[str]]) -> str:
    most, *rest = found
    named = (f"{v} in {', '.join(found[v][:3])}{', ...' * (len(found[v]) > 3)}" for v in rest)
    return f"{most} in {len(found[most])} points but " + " and ".join(named)


def _row(
    group: Sequence[_Run], values: dict[int, float], test: PairedTest, p_holm: float, verdict: str
) -> Row:
    done, sample, n = [run for run in group if run.result], tuple(values.values()), len(values)

    def median(key: str) -> Any:
        known = [run.result[key] for run in done if run.result.get(key) is not None]
        return (known[0] if len(set(known)) == 1 else statistics.median(known)) if known else None

    costs = ("parameters", "trained_parameters", "flops_per_token")
    costs += ("tokens_per_second", "memory", "seconds")
    return Row(
        label=group[0].point.row,
        n=n,
        seeds=tuple(values),
        values=sample,
        workdirs=tuple(run.point.workdir for run in done),
        mean=statistics.fmean(sample) if n else None,
        standard_error=statistics.stdev(sample) / math.sqrt(n) if n > 1 else None,
        missing=len(group) - n,
        **test._asdict(),
        p_holm=p_holm,
        verdict=verdict,
        **{key: median(key) for key in costs},
    )


def _notes(table: Table, done: Sequence[_Run]) -> tuple[str, ...]:
    """Explains the numbers and names what made them, with warnings."""
    notes = [
        f"Metric: {table.metric}, {table.better} is better; mean ± standard error over n seeds.",
        f"Difference: row minus {table.baseline} within seeds [95 % Student-t interval].",
        "Verdict: paired t-tests with a 5 % chance of any false one among all rows (Holm); a row "
        "can be not separable although its own interval excludes zero.",
    ]
    whole = next(row.seeds for row in table.rows if row.label == table.baseline)
    for row in table.rows:
        if row.pairs and row.seeds != whole:
            notes.append(f"WARNING: {row.label}: means are over unlike seeds; see the difference.")
        own = (run.result.items() for run in done if run.point.row == row.label)
        if len({tuple(i for i in items if i[0].startswith("eval/")) for items in own}) < row.n:
            notes.append(f"WARNING: {row.label} has one value for several seeds; are they used?")
    versions = {name for run in done for name in run.result.get("versions") or ()}
    keys = [key for key in _MUST_MATCH if any(key in run.result for run in done)]
    keys += ["device", "mesh", "data_hash", "commit", *sorted(versions)]
    found = {key: _spread(done, key) for key in keys if done}
    notes += [f"WARNING: {k} is {_mixture(v)}." for k, v in found.items() if len(v) > 1]
    same = ", ".join(f"{k} {next(iter(v))}" for k, v in found.items() if len(v) == 1)
    return (*notes, f"All made with: {same or 'nothing in common'}.")
