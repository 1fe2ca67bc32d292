"""Finished points of an ablation: which variants are better, by how much, and how sure are we?

Points of one seed saw the same batches, so variants are compared within seeds. Every number is read
from the points' `result.json`; what is missing is named with its reason and never filled in.
"""

import collections
import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from lm.errors import UserError
from lm.experiment.primary_metric import unit
from lm.training.metric_writer import with_nan

_ALIKE = ("steps", "batch_size", "held-out bytes", "held-out tokens", "held-out examples")
LEVEL = 0.05  # of the intervals (each alone) and of the verdicts (all rows together)


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant. Numbers are over its finished seeds; None means unknown, never zero."""

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
    """Rows in the order of the points; what must be read beside them; what is missing, and why."""

    metric: str
    unit: str
    better: str  # "lower" or "higher"
    baseline: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Paired(NamedTuple):
    """A row against the baseline; the fields are those of the same names in `Row`."""

    pairs: tuple[int, ...] = ()
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float = 1.0


class _Run(NamedTuple):
    point: Any
    result: dict[str, Any]  # empty unless usable
    problem: str = ""  # why it is not

    @property
    def name(self) -> str:
        return f"{self.point.row} seed {self.point.seed}"


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Paired:
    """Compare within seeds: `d_s = values[s] - baseline[s]` over the n seeds s that both have.

    difference = mean(d); interval = mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n); p is two-sided, of
    the paired Student t-test. n = 0 gives no difference; n = 1 gives no interval, and p = 1. So do
    differences without spread (beyond rounding): seeds that change nothing are one run counted n
    times, not evidence.
    """
    seeds = tuple(sorted(values.keys() & baseline.keys()))
    if not seeds:
        return Paired()
    row, base = np.array([[each[seed] for seed in seeds] for each in (values, baseline)])
    difference, n = float(np.mean(row - base)), len(seeds)
    error = float(np.std(row - base, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error <= 8 * np.finfo(float).eps * max(np.abs(row).max(), np.abs(base).max()):
        return Paired(seeds, difference, None, 1.0)
    from scipy import stats  # slow to import

    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, n - 1))
    return Paired(seeds, difference, (difference - half, difference + half), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for testing all m of them: reject where the adjusted one is <= the level.

    With p ascending, `adjusted_i = max over j <= i of min(1, (m - j + 1) p_j)`. The chance of any
    false rejection is then at most the level, however the tests depend on one another.
    (Holm 1979, A simple sequentially rejective multiple test procedure.)
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted[np.argsort(order)].tolist()


def judge(pair: Paired, p_holm: float, better: str = "lower") -> str:
    """Say in a few words what a comparison shows, given its Holm-adjusted p-value."""
    if pair.difference is None or len(pair.pairs) < 2:
        return "one seed" if pair.pairs else "no shared seed"
    if pair.interval is None and pair.difference == 0:
        return "identical"
    if pair.interval is None or p_holm > LEVEL:
        return "not separable"
    return "better" if (pair.difference < 0) == (better == "lower") else "worse"


def tabulate(
    points: Sequence[Any],
    *,
    metric: str = "eval/bits_per_byte",
    baseline: str | None = None,
    better: Literal["lower", "higher"] = "lower",
) -> Table:
    """Read the points' results and compare every row with the baseline (by default the first row).

    A point has `row` (the label of its variant), `seed` and `workdir`. Verdicts are Holm-corrected
    over all rows but the baseline, also those not finished yet: a table read half-way is no bolder
    than the whole. Instead of a verdict a row is "missing" if none of its seeds has finished,
    "failed seed" if it or the baseline lost one to an error or a non-finite metric (the survivors
    flatter it), and "not comparable" if the two trained for other numbers of steps, on batches of
    other sizes, or were asked of other held-out text.

    Raises UserError: no points, a point given twice, an unknown baseline, a metric that no finished
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
    tests = {k: paired(values[k], values[base]) for k in labels if k != base}
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))

    def verdict(label: str) -> str:
        if label == base:
            return "baseline"
        if not done[label]:
            return "missing"
        if any(run.problem.startswith("failed") for run in groups[label] + groups[base]):
            return "failed seed"
        if any(len(_spread(done[label] + done[base], key)) > 1 for key in _ALIKE):
            return "not comparable"
        return judge(tests[label], adjusted[label], better)

    rows = []
    for label in labels:
        judged = {"p_holm": adjusted.get(label, 1.0), "verdict": verdict(label)}
        rows.append(_row(groups[label], values[label], tests.get(label, Paired()), **judged))
    missing = tuple(f"{run.name}: {run.problem}" for run in runs if not run.result)
    table = Table(metric, unit(metric), better, base, tuple(rows), missing=missing)
    return dataclasses.replace(table, notes=_notes(table, [run for run in runs if run.result]))


def _read(point: Any, metric: str) -> _Run:
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
    """On how much a run was judged; bytes first, so that tokenizers compare."""
    sizes = {name: result.get(f"eval/{name}") for name in ("bytes", "examples", "tokens")}
    return next(({f"held-out {k}": v} for k, v in sizes.items() if v is not None), {})


def _refuse(runs: Sequence[_Run], metric: str) -> None:
    """Raise UserError where a table would compare what cannot be compared."""
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
    """Group the names of runs by what their result holds under `key`; the commonest first."""
    found = collections.defaultdict(list)
    for run in runs:
        found[json.dumps(run.result.get(key, "unknown")).strip('"')].append(run.name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _mixture(found: Mapping[str, Sequence[str]]) -> str:
    most, *rest = found
    named = (f"{v} in {', '.join(found[v][:3])}{', ...' * (len(found[v]) > 3)}" for v in rest)
    return f"{most} in {len(found[most])} points but " + " and ".join(named)


def _row(group: Sequence[_Run], values: dict[int, float], test: Paired, **judged: Any) -> Row:
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
        **judged,
        **{key: median(key) for key in costs},
    )


def _notes(table: Table, done: Sequence[_Run]) -> tuple[str, ...]:
    """Say what the numbers are and what made them; warn where they are less than they seem."""
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
    keys = [key for key in _ALIKE if any(key in run.result for run in done)]
    keys += ["device", "mesh", "data_hash", "commit", *sorted(versions)]
    found = {key: _spread(done, key) for key in keys if done}
    notes += [f"WARNING: {k} is {_mixture(v)}." for k, v in found.items() if len(v) > 1]
    same = ", ".join(f"{k} {next(iter(v))}" for k, v in found.items() if len(v) == 1)
    return (*notes, f"All made with: {same or 'nothing in common'}.")


def to_markdown(table: Table) -> str:
    """Write the table as GitHub Markdown that also lines up in a terminal, its notes below it.

    Means and differences have two significant digits of their column's median standard error.
    """
    rows = table.rows
    mean = _format([r.standard_error for r in rows])
    change = _format([(r.interval[1] - r.interval[0]) / 4 for r in rows if r.interval], "+")
    columns = {
        "row": [" ".join(r.label.split()).replace("|", r"\|") for r in rows],
        table.unit: [mean(r.mean) + mean(r.standard_error, " ± {}") for r in rows],
        "n": [f"{r.n} of {r.n + r.missing}" if r.missing else f"{r.n}" for r in rows],
        "difference [95 %]": [change(r.difference) + change(r.interval, " [{}, {}]") for r in rows],
        "verdict": [r.verdict for r in rows],
        "parameters": _amounts([r.parameters for r in rows]),
        "trained": _amounts([r.trained_parameters for r in rows]),
        "FLOPs/token": _amounts([r.flops_per_token for r in rows]),
        "tokens/s": _amounts([r.tokens_per_second for r in rows]),
        "bytes/step": _amounts([r.memory for r in rows]),
        "time": [str(timedelta(seconds=round(r.seconds))) if r.seconds else "" for r in rows],
    }
    if all(row.trained_parameters in (None, row.parameters) for row in rows):
        del columns["trained"]
    if all(row.memory is None for row in rows):
        del columns["bytes/step"]
    padded = []
    for name, cells in columns.items():
        width, side = max(map(len, [name, *cells])), "<" if name in ("row", "verdict") else ">"
        rule = "-" * max(2, width - 1) + ("-" if side == "<" else ":")
        padded.append([rule, *(f"{cell:{side}{len(rule)}}" for cell in [name, *cells])])
    rules, head, *body = ("| " + " | ".join(line) + " |\n" for line in zip(*padded, strict=True))
    notes = [*table.notes, *(f"Missing: {line}" for line in table.missing)]
    return "".join([head, rules, *body, "\n", *(f"- {note}\n" for note in notes)])


def _format(errors: Sequence[float | None], sign: str = "") -> Callable[..., str]:
    scales = [math.floor(math.log10(error)) for error in errors if error] or [-3]
    digits = max(0, 1 - math.floor(statistics.median(scales)))

    def form(value: float | tuple[float, ...] | None, around: str = "{}") -> str:
        values = value if isinstance(value, tuple) else (value,)
        return "" if None in values else around.format(*(f"{v:{sign}.{digits}f}" for v in values))

    return form


def _amounts(values: Sequence[float | None]) -> list[str]:
    """Write a column in one unit, three significant digits of its median: 0.831 M."""
    middle = statistics.median([value for value in values if value] or [1.0])
    units = {" T": 1e12, " G": 1e9, " M": 1e6, " k": 1e3}
    unit, size = next((pair for pair in units.items() if middle >= 0.5 * pair[1]), ("", 1.0))
    digits = max(0, 2 - math.floor(math.log10(middle / size)))
    return ["" if value is None else f"{value / size:.{digits}f}{unit}" for value in values]


def to_csv(table: Table) -> str:
    """Write one line a row, in full precision; a cell of several values has spaces between them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    for row in table.rows:
        cells = dataclasses.astuple(row)
        writer.writerow([" ".join(map(str, c)) if isinstance(c, tuple) else c for c in cells])
    return out.getvalue()
