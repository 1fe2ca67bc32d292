"""Reads the learning curves of an ablation's rows from the metrics.jsonl of their runs."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lm.experiment.ablation.statistics.rows import Table
from lm.training.metric_writer import read_metrics


class Curve(NamedTuple):
    """The values of a row at the steps that all of its seeds have recorded."""

    steps: np.ndarray  # [T]
    values: np.ndarray  # [seeds, T]


class Curves(NamedTuple):
    """The curves of rows by their label, and the metric that they are of."""

    metric: str
    unit: str
    rows: Mapping[str, Curve]
    rising: bool  # higher is better


def read_curves(table: Table) -> Curves:
    """Curves of the table's metric where every row recorded it at three steps or more, otherwise
    of the training loss, smoothed by a mean over a 12th of the steps.
    """
    logs = {row.label: [_log(workdir) for workdir in row.workdirs] for row in table.rows if row.n}
    key, curves = table.metric, {}
    for key, least in ((table.metric, 3), ("train/loss", 2)):
        curves = {label: _curve(log, key) for label, log in logs.items()}
        if curves and all(len(curve.steps) >= least for curve in curves.values()):
            break
    else:
        curves = {label: curve for label, curve in curves.items() if len(curve.steps) >= 2}
    if key == "train/loss":
        smooth = {k: Curve(steps, _smooth(values)) for k, (steps, values) in curves.items()}
        return Curves(key, "training loss, smoothed", smooth, False)
    return Curves(key, table.unit, curves, table.better == "higher")


def value_range(curves: Curves) -> tuple[float, float]:
    """Limits of an axis that shows the means from a quarter of the steps on, where they end: the
    best of all, and of the worst so much that curves that fell behind do not flatten the others.
    """
    late = [c.values.mean(axis=0)[c.steps >= 0.25 * c.steps[-1]] for c in curves.rows.values()]
    sign = -1 if curves.rising else 1
    best = min(float((sign * values).min()) for values in late)
    starts = sorted(float((sign * values).max()) for values in late)
    ends = sorted(float(sign * values[-1]) for values in late)
    middle = starts[len(starts) // 2]
    worst = max(middle, min(ends[-1], best + 3 * (middle - best)))
    margin = 0.04 * (worst - best) + 1e-9
    low, high = sorted((sign * (best - margin), sign * (worst + margin)))
    return low, high


def step_range(curves: Curves, limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of the axis of steps: from the last step before any mean is within the limits of the
    other axis, or the first of all, to the last of all.
    """
    starts = []
    for steps, values in curves.rows.values():
        mean = values.mean(axis=0)
        inside = np.flatnonzero((mean >= limits[0]) & (mean <= limits[1]))
        starts.append(float(steps[max(0, inside[0] - 1)] if len(inside) else steps[0]))
    return min(starts), max(float(curve.steps[-1]) for curve in curves.rows.values())


def _log(workdir: epath.Path) -> dict[int, dict[str, Any]]:
    """metrics.jsonl as step -> values: training and evaluation write a line each."""
    found: dict[int, dict[str, Any]] = {}
    for record in read_metrics(workdir / "metrics.jsonl"):
        found.setdefault(record["step"], {}).update(record)
    return found


def _curve(logs: list[dict[int, dict[str, Any]]], key: str) -> Curve:
    def finite(value: object) -> bool:
        return isinstance(value, int | float) and math.isfinite(value)

    known = [{step: v[key] for step, v in log.items() if finite(v.get(key))} for log in logs]
    steps = sorted(set.intersection(*map(set, known)))
    return Curve(np.array(steps), np.array([[seed[step] for step in steps] for seed in known]))


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a centred window of a 12th of the curve, narrower at its ends."""
    window = np.ones(max(1, values.shape[1] // 12))
    counts = np.convolve(np.ones(values.shape[1]), window, "same")
    return np.array([np.convolve(seed, window, "same") / counts for seed in values])
