"""Draws the figures of the report as SVG whose lengths are percentages, so that a page of any width
shows them with text of one size.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm.evaluation.html.markup import Markup, breakable, join, tag
from lm.experiment.ablation.report.curves import Curve, Curves, step_range, value_range
from lm.experiment.ablation.report.effects import effect_range, simultaneous
from lm.experiment.ablation.report.html.axis import Axis, frame, minus, percent
from lm.experiment.ablation.statistics.rows import Row, Table

_POINTS = 160  # of a curve, at most
_UNITS = 1000  # of the inner coordinates of curves


def plot(title: str, description: str, *children: str) -> Markup:
    """A plot of the width of its column, with a name and a description for screen readers."""
    texts = tag("title", title), tag("desc", description)
    return tag("svg", *texts, *children, class_="plot", role="img", aria_label=title)


def draw_curves(curves: Curves, classes: Mapping[str, str]) -> Markup:
    """The means of rows over their seeds; a band from the lowest to the highest seed for those that
    have a colour of their own, which are drawn last.
    """
    limits = value_range(curves)
    x, y = Axis(*step_range(curves, limits)), Axis(*limits)
    order = sorted(curves.rows, key=lambda label: classes[label], reverse=True)
    shapes = [_line(curves.rows[label], classes[label], x, y) for label in order]
    inside = tag(
        "svg",
        *shapes,
        viewBox=f"0 0 {_UNITS} {_UNITS}",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
        class_="inside",
    )
    description = f"{curves.unit} over steps, the mean over seeds of {len(curves.rows)} rows."
    return plot("Learning curves", description, frame(x, y), inside)


def _line(curve: Curve, kind: str, x: Axis, y: Axis) -> Markup:
    kept = np.unique(np.linspace(0, len(curve.steps) - 1, _POINTS).round().astype(int))
    steps, values = curve.steps[kept], curve.values[:, kept]

    def points(heights: np.ndarray) -> list[str]:
        across = [round(_UNITS * x.at(float(step)) / 100) for step in steps]
        down = [round(_UNITS * (1 - y.at(float(height)) / 100)) for height in heights]
        return [f"{a},{max(-9999, min(9999, b))}" for a, b in zip(across, down, strict=True)]

    line = tag("polyline", points=" ".join(points(values.mean(axis=0))), class_=f"curve {kind}")
    if kind == "other" or len(values) < 2:
        return line
    around = points(values.min(axis=0)) + points(values.max(axis=0))[::-1]
    return join(tag("polygon", points=" ".join(around), class_=f"band {kind}"), line)


def draw_effects(
    rows: Sequence[Row], table: Table, names: Mapping[str, str], texts: Mapping[str, str]
) -> Markup:
    """A line for each row: its difference, its own interval, and the thinner one that holds with
    those of all rows together; beyond the axis they end in an arrow.
    """
    x = Axis(*effect_range([row for row in rows if row.pairs]))
    lines = [
        _lane(names[row.label], _effect(row, x, table.comparisons), texts[row.label])
        for row in rows
    ]
    return tag("ul", *lines, _lane_axis(x, "+"), class_="lanes")


def _effect(row: Row, x: Axis, comparisons: int) -> Markup:
    parts = [_grid(x), _rule(x.at(0), "zero")]
    if row.difference is None:
        return _lane_svg(f"no difference: {row.verdict}", *parts)
    kind = {"better": "better", "worse": "worse"}.get(row.verdict, "neither")
    all_, text = simultaneous(row, comparisons), "no interval"
    if row.interval is not None and all_ is not None:
        parts += [_span(all_, x, f"{kind} all"), _span(row.interval, x, kind)]
        text = minus("95 % interval {:+.3g} to {:+.3g}; with all rows {:+.3g} to {:+.3g}").format(
            *row.interval, *all_
        )
    place = x.at(row.difference)
    if 0 <= place <= 100:
        parts.append(tag("circle", cx=percent(place), cy="50%", r="4.5", class_=f"dot {kind}"))
    parts += _arrows([place], kind)
    return _lane_svg(minus(text), *parts)


def _span(interval: tuple[float, float], x: Axis, kind: str) -> Markup:
    ends = [min(100.0, max(0.0, x.at(end))) for end in interval]
    if ends[0] == ends[1]:
        return Markup()
    height = {"y1": "50%", "y2": "50%"}
    return tag("line", x1=percent(ends[0]), x2=percent(ends[1]), **height, class_=f"span {kind}")


def _arrows(places: Sequence[float], kind: str) -> list[Markup]:
    """An arrow at each end of the axis beyond which there are places, in percent."""
    ends = (
        ("\N{BLACK LEFT-POINTING SMALL TRIANGLE}", "0%", "start", min(places, default=0) < 0),
        ("\N{BLACK RIGHT-POINTING SMALL TRIANGLE}", "100%", "end", max(places, default=0) > 100),
    )
    return [
        tag("text", mark, x=at, y="50%", dy=".35em", text_anchor=side, class_=f"beyond {kind}")
        for mark, at, side, there in ends
        if there
    ]


def draw_seeds(
    rows: Sequence[Row], table: Table, names: Mapping[str, str], texts: Mapping[str, str]
) -> Markup:
    """A line for each row with a dot for each seed and a mark at their mean; a rule at the mean of
    the row's baseline.
    """
    x = _without_outliers([value for row in rows for value in row.values], table.better)
    means, lines = {row.label: row.mean for row in table.rows}, []
    for row in rows:
        base = means[row.baseline or row.label]
        parts = [_grid(x)] + ([_rule(x.at(base), "zero")] if base is not None else [])
        places = [x.at(value) for value in row.values]
        parts += [
            tag("circle", cx=percent(place), cy="50%", r="3.2", class_="seed")
            for place in places
            if 0 <= place <= 100
        ]
        parts += _arrows(places, "seed")
        if row.mean is not None and 0 <= x.at(row.mean) <= 100:
            parts.append(_rule(x.at(row.mean), "mean", "20%", "80%"))
        listed = ", ".join(f"{value:.4g}" for value in row.values) or "none"
        lines.append(
            _lane(names[row.label], _lane_svg(f"seeds: {listed}", *parts), texts[row.label])
        )
    return tag("ul", *lines, _lane_axis(x), class_="lanes")


def _lane(name: str, drawn: Markup, text: str) -> Markup:
    named = tag("span", breakable(name), class_="name")
    return tag("li", named, drawn, tag("span", text, class_="value"))


def _lane_svg(label: str, *parts: str) -> Markup:
    drawn = tag("svg", tag("title", label), *parts, role="img", aria_label=label)
    return tag("span", drawn, class_="drawing")


def _lane_axis(x: Axis, sign: str = "") -> Markup:
    texts = [
        tag("text", text, x=percent(x.at(value)), y="1em", text_anchor="middle")
        for value, text in x.labels(4, sign)
    ]
    line = tag("line", x1="0", x2="100%", y1="0", y2="0", class_="axis")
    drawn = tag("span", tag("svg", line, *texts), class_="drawing")
    return tag("li", tag("span", class_="name"), drawn, class_="axis", aria_hidden="true")


def _grid(x: Axis) -> Markup:
    return join(*(_rule(x.at(value), "grid") for value in x.ticks(4)))


def _rule(place: float, kind: str, top: str = "0", bottom: str = "100%") -> Markup:
    at = percent(place)
    return tag("line", x1=at, x2=at, y1=top, y2=bottom, class_=kind)


def draw_costs(
    table: Table, cost: str, name: str, classes: Mapping[str, str], names: Mapping[str, str]
) -> Markup:
    """Each row's metric against what it costs; empty where all rows cost the same."""
    known = [row for row in table.rows if row.mean is not None and getattr(row, cost)]
    costs = [float(getattr(row, cost)) for row in known]
    if len(set(costs)) < 2:
        return Markup()
    size, unit = next(
        pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (0, "")) if max(costs) >= pair[0]
    )
    size = size or 1.0
    means = [row.mean or 0.0 for row in known]
    x, y = _around([value / size for value in costs]), _without_outliers(means, table.better)
    dots = []
    for row, value in sorted(
        zip(known, costs, strict=True), key=lambda pair: classes[pair[0].label], reverse=True
    ):
        height = y.at(row.mean or 0.0)
        inside = "" if 0 <= height <= 100 else " outside"  # is drawn at the edge
        at = {
            "cx": percent(x.at(value / size)),
            "cy": percent(100 - min(100.0, max(0.0, height))),
            "class_": f"point {classes[row.label]}{inside}",
        }
        title = f"{names[row.label]}: {row.mean:.4g}, {value / size:.3g} {unit}"
        dots.append(tag("circle", tag("title", title), **at, r="5"))
    title = f"{table.unit} against {name}"
    drawn = plot(title, f"A point for each of {len(known)} rows.", frame(x, y, 4), *dots)
    axis = f"{name} ({unit})" if unit else name
    return tag(
        "figure", tag("p", table.unit, class_="ylabel"), drawn, tag("p", axis, class_="xlabel")
    )


def _without_outliers(values: Sequence[float], better: str) -> Axis:
    """An axis of the values that are not worse than their median by more than six median
    deviations, so that rows which failed do not flatten the others.
    """
    sign, middle = 1 if better == "lower" else -1, float(np.median(values))
    reach = 6 * float(np.median(np.abs(np.array(values) - middle)))
    return _around([value for value in values if not reach or sign * (value - middle) <= reach])


def _around(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin)
