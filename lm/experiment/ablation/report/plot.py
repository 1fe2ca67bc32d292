"""Plots an ablation as a PNG: learning curves, the values of each seed, and differences from the
baseline.

Curves are means over seeds with a band from the lowest to the highest seed. Differences are within
seeds, with 95 % intervals, in the colours of the curves.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from lm.experiment.ablation.report.curves import Curves, read_curves, step_range, value_range
from lm.experiment.ablation.report.effects import by_effect, effect_range
from lm.experiment.ablation.report.labels import common_part, shorten
from lm.experiment.ablation.statistics.rows import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Up to this many rows have a colour each: black for the baseline and Paul Tol's "muted" scheme,
# which colour-blind readers can tell apart. More rows are coloured by their verdict.
COLOURS = 10
BANDS = 5  # up to this many rows have a band each; among more, the baseline and the best
MUTED = ("#CC6677", "#332288", "#117733", "#88CCEE", "#882255")
MUTED += ("#DDCC77", "#44AA99", "#AA4499", "#999933")
BETTER, WORSE, OTHER, BEST = "#0072B2", "#D55E00", "#9A9A9A", "#117733"
DECIDED = ("better", "worse")


@dataclasses.dataclass(frozen=True)
class Style:
    """The style of a row in all panels."""

    colour: str
    width: float  # points
    band: bool
    label: str | None  # in the legend of the curves
    order: float  # higher is drawn later


def draw(table: Table, path: epath.PathLike) -> None:
    """Plots the table as a PNG of 150 dots per inch; it grows with the number of rows.

    A few rows have curves and differences side by side; of many, the curves are above, and below
    them the values of each seed beside the differences. A filled marker is a difference that the
    table calls better or worse; one beyond the axis is an arrow with its value.
    """
    from matplotlib.figure import Figure  # slow to import

    rows, short = len(table.rows), shorten([row.label for row in table.rows])
    longest = max(map(len, short.values()))
    many, styles = rows > COLOURS, _styles(table, short)
    size = (10.5 + 0.075 * longest, 4.4 + 0.12 * rows) if not many else (11, 5.2 + 0.25 * rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    if many:
        panels = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.2, 1.0 + 0.25 * rows))
        _draw_curves(panels[0, 0].subplots(), table, styles, columns=2)
        left, right = panels[1, 0].subplots(1, 2, sharey=True, width_ratios=(1, 1.3))
        _draw_values(left, table, styles)
    else:
        left, right = figure.subplots(1, 2, width_ratios=(5, 5.5))
        _draw_curves(left, table, styles, columns=1 + (longest < 24))
    _draw_differences(right, table, styles)
    rows_axes = left if many else right
    rows_axes.set_yticks(range(rows), [_plain(short[row.label]) for row in table.rows])
    rows_axes.set_ylabel(_plain(common_part([row.label for row in table.rows])))
    rows_axes.tick_params(axis="y", labelsize=8.5)
    handles = _legend(many)
    place = right if not many else left
    place.figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png")


def _styles(table: Table, short: Mapping[str, str]) -> dict[str, Style]:
    """A colour for each row, or, where there are too many, for its verdict."""
    others = [row for row in table.rows if row.baseline]
    styles = {
        row.label: Style("black", 2.0, True, f"{short[row.label]} (baseline)", 3)
        for row in table.rows
        if not row.baseline
    }
    if len(table.rows) <= COLOURS:
        for row, colour in zip(others, MUTED, strict=False):
            few = len(table.rows) <= BANDS
            styles[row.label] = Style(colour, 1.6, few, short[row.label], 2)
        return styles
    for row in others:
        colour = {"better": BETTER, "worse": WORSE}.get(row.verdict, OTHER)
        styles[row.label] = Style(colour, 0.7, False, None, 1)
    best = next(iter(by_effect(table)), None)
    if best and best.difference is not None:
        colour = styles[best.label].colour
        text = f"{short[best.label]} (best difference, {best.verdict})"
        styles[best.label] = Style(BEST if colour == OTHER else colour, 2.0, True, text, 2.5)
    return styles


def _draw_curves(axes: "Axes", table: Table, styles: Mapping[str, Style], columns: int) -> None:
    curves = read_curves(table)
    _clear(axes)
    if not curves.rows:
        axes.text(0.5, 0.5, "no curves recorded", ha="center", transform=axes.transAxes)
        return
    _draw_means(axes, curves, styles)
    limits = value_range(curves)
    axes.set(xlabel="step", ylabel=curves.unit, ylim=limits, xlim=step_range(curves, limits))
    axes.set_title("Mean over seeds; shaded: lowest to highest seed", fontsize=10, loc="left")
    shown = {"ncols": columns, "fontsize": 8.5, "frameon": False, "borderaxespad": 0}
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), **shown)


def _draw_means(axes: "Axes", curves: Curves, styles: Mapping[str, Style]) -> None:
    most = max(len(values) for _, values in curves.rows.values())
    for label, (steps, values) in curves.rows.items():
        style, few = styles[label], f", {len(values)} of {most} seeds" * (len(values) < most)
        look = {"color": style.colour, "zorder": style.order}
        text = style.label and _plain(style.label + few)
        axes.plot(steps, values.mean(axis=0), linewidth=style.width, label=text, **look)
        if style.band and len(values) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(steps, low, high, alpha=0.15, linewidth=0, **look)


def _draw_values(axes: "Axes", table: Table, styles: Mapping[str, Style]) -> None:
    for height, row in enumerate(table.rows):
        colour = styles[row.label].colour
        axes.plot(row.values, [height] * row.n, "o", color=colour, markersize=3.5, alpha=0.7)
        if row.mean is not None:
            axes.plot(row.mean, height, "|", color=colour, markersize=11, markeredgewidth=2)
    _clear(axes)
    axes.set_xlabel(_plain(table.unit))
    axes.set_title("Each seed, and their mean", fontsize=10, loc="left")


def _draw_differences(axes: "Axes", table: Table, styles: Mapping[str, Style]) -> None:
    limits = effect_range(list(table.rows))
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    for height, row in enumerate(table.rows):
        colour = styles[row.label].colour
        if not row.baseline:
            axes.plot(0, height, "D", color=colour, markersize=6, zorder=4)
        elif row.difference is None:
            axes.text(0, height, f" {row.verdict}", color="#555555", fontsize=8, va="center")
        else:
            _draw_difference(axes, height, row, colour, limits)
    axes.set(xlim=limits, ylim=(len(table.rows) - 0.4, -0.6))
    _clear(axes)
    side = "left" if table.better == "lower" else "right"
    axes.set_xlabel(_plain(f"difference in {table.unit}; {side} is better"))
    axes.set_title("Difference from the baseline, 95 % interval", fontsize=10, loc="left")


def _draw_difference(
    axes: "Axes", height: float, row: Row, colour: str, limits: tuple[float, float]
) -> None:
    difference, (low, high) = row.difference or 0.0, limits
    if row.interval:
        axes.plot(row.interval, (height, height), color=colour, linewidth=2, zorder=2)
    marker, inside = "o", 0.02 * (high - low)
    if not low < difference < high:
        marker, end, side = (">", high, "right") if difference > 0 else ("<", low, "left")
        place = end - 2 * inside if difference > 0 else end + 2 * inside
        look = {"fontsize": 8, "va": "center", "ha": side, "zorder": 5}
        axes.text(place, height, f"{difference:+.3g}", **look)
        difference = end - inside if difference > 0 else end + inside
    face = colour if row.verdict in DECIDED else "white"
    look = {"color": colour, "markerfacecolor": face, "markersize": 6.5, "markeredgewidth": 1.5}
    axes.plot(difference, height, marker, zorder=3, **look)


def _clear(axes: "Axes") -> None:
    axes.grid(axis="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


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


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read it as mathematics
