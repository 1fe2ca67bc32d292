"""Plots an ablation: learning curves, and differences from the baseline.

Left: the mean over seeds and a band from the lowest to the highest seed. Right: the paired
difference of each row from the baseline with its 95 % interval, in the colours of the left.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from lm.experiment.ablation.comparison import Row, Table
from lm.training.metric_writer import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[np.ndarray, np.ndarray]  # steps [T], values [seeds, T]

# Up to this many rows have a colour each: black for the baseline and Paul Tol's "muted" scheme,
# which colour-blind readers can tell apart. More rows are coloured by their verdict.
COLOURS = 10
INSIDE = 30  # a legend with a label of more characters than this would cover the curves
BANDS = 5  # up to this many rows have a band each; among more, the baseline and the best
MUTED = ("#CC6677", "#332288", "#117733", "#88CCEE", "#882255")
MUTED += ("#DDCC77", "#44AA99", "#AA4499", "#999933")
BETTER, WORSE, OTHER, BEST = "#0072B2", "#D55E00", "#9A9A9A", "#117733"
DECIDED = ("better", "worse")


@dataclasses.dataclass(frozen=True)
class Style:
    """The style of a row in both panels."""

    colour: str
    width: float  # points
    band: bool
    label: str | None  # in the legend of the curves
    order: float  # higher is drawn later


def draw(table: Table, path: epath.PathLike) -> None:
    """Plots the table as a PNG of 150 dots per inch; it grows with the number of rows.

    Curves are of the table's metric where every row recorded it at three steps or more, otherwise
    of the smoothed training loss. In the right panel a filled marker is a difference that the table
    calls better or worse; one beyond the axis is an arrow with its value.
    """
    from matplotlib.figure import Figure  # slow to import

    rows = len(table.rows)
    longest = max(len(_short(row.label)) for row in table.rows)
    below = rows > COLOURS or longest > INSIDE  # where the legend of the curves goes
    tall = max(4.6, 1.8 + 0.27 * rows) + 0.2 * rows * (below and rows <= COLOURS)
    figure = Figure(figsize=(10.5 + 0.075 * longest, tall), dpi=150, layout="constrained")
    top = min(tall, 6.0)  # taller curves show no more
    heights = (top, tall - top) if tall > top else (top,)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=(5, 5.5))
    styles = _styles(table)
    _draw_curves(figure.add_subplot(grid[0, 0]), table, styles, below)
    _draw_differences(figure.add_subplot(grid[:, 1]), table, styles)
    handles = _legend(rows > COLOURS)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png")


def _styles(table: Table) -> dict[str, Style]:
    """A colour for each row, or, where there are too many, for its verdict."""
    others = [row for row in table.rows if row.label != table.baseline]
    styles = {table.baseline: Style("black", 2.0, True, f"{_short(table.baseline)} (baseline)", 3)}
    if len(table.rows) <= COLOURS:
        for row, colour in zip(others, MUTED, strict=False):
            styles[row.label] = Style(colour, 1.6, len(table.rows) <= BANDS, _short(row.label), 2)
        return styles
    known = [row for row in others if row.difference is not None]
    sign = 1 if table.better == "lower" else -1
    best = min(known, key=lambda row: sign * (row.difference or 0.0), default=None)
    for row in others:
        colour = {"better": BETTER, "worse": WORSE}.get(row.verdict, OTHER)
        if row is best:
            text = f"{_short(row.label)} (best difference, {row.verdict})"
            styles[row.label] = Style(BEST if colour == OTHER else colour, 2.0, True, text, 2.5)
        else:
            styles[row.label] = Style(colour, 0.7, False, None, 1)
    return styles


def _draw_curves(axes: "Axes", table: Table, styles: Mapping[str, Style], below: bool) -> None:
    key, curves = _curves(table)
    most = max((len(values) for _, values in curves.values()), default=0)
    for label, (steps, values) in curves.items():
        style, few = styles[label], f", {len(values)} of {most} seeds" * (len(values) < most)
        look = {"color": style.colour, "zorder": style.order}
        text = style.label and _plain(style.label + few)
        axes.plot(steps, values.mean(axis=0), linewidth=style.width, label=text, **look)
        if style.band and len(values) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(steps, low, high, alpha=0.15, linewidth=0, **look)
    if not curves:
        axes.text(0.5, 0.5, "no curves recorded", ha="center", transform=axes.transAxes)
        return
    rising = key == table.metric and table.better == "higher"
    unit = table.unit if key == table.metric else "smoothed"
    axes.set(xlabel="step", ylabel=f"{key} ({unit})", ylim=_range(list(curves.values()), rising))
    axes.set_title("Mean over seeds; shaded: lowest to highest seed", fontsize=10)
    axes.grid(alpha=0.25)
    if below:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), fontsize=8, frameon=False)
    else:
        axes.legend(loc="best", fontsize=8, framealpha=0.9)


def _range(curves: list[Curve], rising: bool) -> tuple[float, float]:
    """Limits of the axis that show the curves from a quarter of the steps on."""
    late = [values[:, steps >= 0.25 * steps[-1]] for steps, values in curves]
    low, high = ([float(end(values)) for values in late] for end in (np.min, np.max))
    ends = (np.median(low), max(high)) if rising else (min(low), np.median(high))
    margin = 0.05 * float(ends[1] - ends[0]) + 1e-9
    return float(ends[0]) - margin, float(ends[1]) + margin


def _curves(table: Table) -> tuple[str, dict[str, Curve]]:
    """The name of the curves on the left, and the curve of each row."""
    logs = {row.label: [_log(workdir) for workdir in row.workdirs] for row in table.rows if row.n}
    for key, least in ((table.metric, 3), ("train/loss", 2)):
        curves = {label: _curve(log, key) for label, log in logs.items()}
        if curves and all(len(steps) >= least for steps, _ in curves.values()):
            break
    else:
        curves = {label: curve for label, curve in curves.items() if len(curve[0]) >= 2}
    if key == "train/loss":
        curves = {k: (steps, _smooth(values)) for k, (steps, values) in curves.items()}
    return key, curves


def _log(workdir: epath.Path) -> dict[int, dict[str, Any]]:
    """metrics.jsonl as step -> values: training and evaluation write a line each."""
    found: dict[int, dict[str, Any]] = {}
    for record in read_metrics(workdir / "metrics.jsonl"):
        found.setdefault(record["step"], {}).update(record)
    return found


def _curve(logs: list[dict[int, dict[str, Any]]], key: str) -> Curve:
    """The seeds' values at the steps that all have recorded."""

    def finite(value: object) -> bool:
        return isinstance(value, int | float) and math.isfinite(value)

    known = [{step: v[key] for step, v in log.items() if finite(v.get(key))} for log in logs]
    steps = sorted(set.intersection(*map(set, known)))
    return np.array(steps), np.array([[seed[step] for step in steps] for seed in known])


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a centred window of a 12th of the curve, narrower at its ends."""
    window = np.ones(max(1, values.shape[1] // 12))
    counts = np.convolve(np.ones(values.shape[1]), window, "same")
    return np.array([np.convolve(seed, window, "same") / counts for seed in values])


def _draw_differences(axes: "Axes", table: Table, styles: Mapping[str, Style]) -> None:
    limit = _limit(table.rows)
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    for height, row in enumerate(table.rows):
        colour = styles[row.label].colour
        if row.label == table.baseline:
            axes.plot(0, height, "D", color=colour, markersize=6, zorder=4)
        elif row.difference is None:
            axes.text(0, height, f" {row.verdict}", color="#555555", fontsize=8, va="center")
        else:
            _draw_difference(axes, height, row, colour, limit)
    axes.set(xlim=(-1.08 * limit, 1.08 * limit), ylim=(len(table.rows) - 0.4, -0.6))
    axes.set_yticks(range(len(table.rows)), [_plain(_short(row.label)) for row in table.rows])
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    axes.grid(axis="x", alpha=0.25)
    side = "left" if table.better == "lower" else "right"
    name = table.baseline if len(table.baseline) <= INSIDE else "the baseline"
    axes.set_xlabel(_plain(f"{table.unit}, difference from {name}; {side} is better"))
    axes.set_title("Difference within seeds; 95 % interval of each row alone", fontsize=10)


def _draw_difference(axes: "Axes", height: float, row: Row, colour: str, limit: float) -> None:
    difference = row.difference or 0.0
    if row.interval:
        axes.plot(row.interval, (height, height), color=colour, linewidth=2, zorder=2)
    marker = "o"
    if abs(difference) > limit:
        marker, sign, side = (">", 1, "right") if difference > 0 else ("<", -1, "left")
        value = f"{difference:+.3g}  "
        axes.text(sign * 0.98 * limit, height, value, fontsize=8, va="center", ha=side)
        difference = sign * 1.03 * limit
    face = colour if row.verdict in DECIDED else "white"
    look = {"color": colour, "markerfacecolor": face, "markersize": 6.5, "markeredgewidth": 1.5}
    axes.plot(difference, height, marker, zorder=3, **look)


def _limit(rows: tuple[Row, ...]) -> float:
    """The half-width of the axis, chosen so that one outlier does not flatten all others."""
    tested = [row for row in rows if row.pairs]
    reach = [max(map(abs, (row.difference or 0.0, *(row.interval or ())))) for row in tested]
    if not any(reach):
        return 1.0
    return float(min(max(reach), 3 * np.quantile([r for r in reach if r], 0.6)))


def _legend(by_verdict: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    def marker(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="", markersize=6.5, label=label, **look)

    grey = {"marker": "o", "color": "#555555", "markeredgewidth": 1.5}
    found = [
        marker("baseline", marker="D", color="black"),
        marker("separable from it (Holm, 5 % for all rows)", **grey),
        marker("not separable, or no test", markerfacecolor="white", **grey),
    ]
    colours = {"better": BETTER, "worse": WORSE, "neither": OTHER} if by_verdict else {}
    return found + [marker(name, marker="s", color=colour) for name, colour in colours.items()]


def _short(label: str) -> str:
    """A label without its middle where it is longer than 60 characters."""
    return label if len(label) <= 60 else f"{label[:34]}...{label[-23:]}"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read it as mathematics
