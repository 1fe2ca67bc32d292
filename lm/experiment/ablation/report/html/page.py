"""Writes the page of a report: its sections, in the order in which they are read."""

import collections
import importlib.resources
from collections.abc import Mapping, Sequence

from lm.evaluation.html.document import document
from lm.evaluation.html.markup import Markup, breakable, join, tag
from lm.evaluation.html.markup import table as html_table
from lm.experiment.ablation.report.curves import read_curves
from lm.experiment.ablation.report.effects import by_effect
from lm.experiment.ablation.report.html import facts, figures
from lm.experiment.ablation.report.html.axis import minus
from lm.experiment.ablation.report.labels import shorten
from lm.experiment.ablation.report.recorded import Ablated
from lm.experiment.ablation.report.table import columns
from lm.experiment.ablation.statistics.rows import Row, Table

_COLOURED = 5  # rows that have a colour besides the baseline
_WORDS = ("row", "verdict")  # columns of words, aligned left
_COSTS = {
    "flops_per_token": "FLOPs per token",
    "memory": "memory of a step, bytes",
    "parameters": "parameters",
}


def make_page(ablated: Ablated, tables: Sequence[Table], workdir: str) -> str:
    """The report of an ablation as one page of HTML, with its style, script and figures inside.

    Args:
      ablated: the ablation.
      tables: for each of its metrics; figures of cost and of curves are of the first.
      workdir: as the command that makes it again names it.
    """
    first = tables[0]
    folder = importlib.resources.files("lm.experiment.ablation.report.html")
    style, script = (folder.joinpath(name).read_text() for name in ("page.css", "page.js"))
    title, question = _question(ablated, first)
    made = facts.environment(ablated, first)
    sections = {
        "Protocol": _protocol(first),
        **{_name("Table", each, tables): _table(each) for each in tables},
        **{_name("Effects", each, tables): _effects(each) for each in tables},
        "Learning curves": _curves(first),
        "Spread of seeds": _seeds(first),
        "Cost": _costs(first),
        "Configurations": _configurations(ablated, first),
        "Environment": _environment(made),
        "Run it again": _again(ablated, workdir, [commit for commit, _ in made.get("commit", [])]),
    }
    return document(title, question, sections, style, script)


def _name(kind: str, shown: Table, tables: Sequence[Table]) -> str:
    return kind if len(tables) == 1 else f"{kind}: {shown.unit}"


def _question(ablated: Ablated, shown: Table) -> tuple[str, Markup]:
    """The title, what was found in a sentence, and the rest of the config file's docstring."""
    lines = ablated.source.description.splitlines()
    title = lines[0].rstrip(".") if lines else f"Comparison with {shown.compared_with}"
    rest = "\n".join(lines[1:]).strip()
    words = (row.verdict.partition(" (")[0] for row in shown.rows if row.baseline)
    counts = sorted(collections.Counter(words).items(), key=_place)
    found = ", ".join(f"{count} {verdict}" for verdict, count in counts)
    count = sum(bool(row.baseline) for row in shown.rows)
    text = f"{count} rows against {shown.compared_with}: {found}." if counts else "One row."
    if shown.protocol == "screen":
        text = f"A screening of {len(shown.rows)} rows; it ranks, and has no verdicts."
    parts = [tag("p", text, class_="found")]
    if rest:
        parts.append(tag("pre", rest, class_="question", tabindex="0"))
    return title, join(*parts)


def _place(counted: tuple[str, int]) -> int:
    """Where a verdict and its count stand in a sentence: verdicts, then what is no verdict."""
    order = ("better", "equivalent within", "not separable", "worse")
    starts = [place for place, word in enumerate(order) if counted[0].startswith(word)]
    return starts[0] if starts else len(order)


def _protocol(shown: Table) -> Markup:
    seeds = sorted({seed for row in shown.rows for seed in row.seeds})
    done = sum(row.n for row in shown.rows)
    planned = done + sum(row.missing for row in shown.rows)
    correction = f"Holm, over {shown.comparisons} comparisons"
    entries = {
        "Metric": f"{shown.unit}, {shown.better} is better",
        "Baseline": breakable(shown.compared_with),
        "Seeds": ", ".join(map(str, seeds)) or "none finished",
        "Runs": f"{done} of {planned} finished",
        "Test": "paired t-tests within seeds",
        "Correction": correction if shown.protocol != "screen" else "none: a screening",
    }
    warnings = [note for note in shown.notes if note.startswith("WARNING: ")]
    plain = [n for n in shown.notes if n not in warnings and not n.startswith("All made with")]
    parts = [
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in entries.items())),
        tag("ul", *(tag("li", minus(note)) for note in plain), class_="notes"),
    ]
    if warnings:
        items = (tag("li", note.removeprefix("WARNING: ")) for note in warnings)
        parts.append(tag("ul", *items, class_="warnings", aria_label="Warnings"))
    if shown.missing:
        items = (tag("li", line) for line in shown.missing)
        summary = tag("summary", f"{len(shown.missing)} runs without a result")
        parts.append(tag("details", summary, tag("ul", *items, class_="notes")))
    return join(*parts)


def _classes(shown: Table) -> dict[str, str]:
    """The class of each row in figures: of a baseline, of the best five, or of others."""
    best = [row for row in by_effect(shown) if row.difference is not None][:_COLOURED]
    classes = {row.label: "other" if row.baseline else "base" for row in shown.rows}
    return classes | {row.label: f"best{place}" for place, row in enumerate(best, start=1)}


def _names(shown: Table) -> dict[str, str]:
    return shorten([row.label for row in shown.rows])


def _key(shown: Table) -> Markup:
    """The colours of rows."""
    classes, names = _classes(shown), _names(shown)
    coloured = sorted((c, label) for label, c in classes.items() if c != "other")
    items = [
        tag("li", tag("i", class_=kind), tag("span", _called(names[label], kind)))
        for kind, label in coloured
    ]
    if "other" in classes.values():
        items.append(tag("li", tag("i", class_="other"), "other rows"))
    return tag("ul", *items, class_="key")


def _called(name: str, kind: str) -> Markup:
    return join(breakable(name), " (baseline)" * (kind == "base"))


def _table(shown: Table) -> Markup:
    found = columns(shown)
    head = [
        tag("th", name, scope="col", class_=None if name in _WORDS else "number") for name in found
    ]
    body = []
    for row, *cells in zip(shown.rows, *found.values(), strict=True):
        first, *rest = zip(found, cells, strict=True)
        drawn = [tag("th", breakable(first[1]), scope="row")]
        for name, cell in rest:
            content: str = minus(cell)
            if name == "verdict":
                content = tag("span", cell, class_=f"verdict {_verdict(row)}")
            drawn.append(tag("td", content, class_=None if name in _WORDS else "number"))
        kind = None if row.baseline else "baseline"
        body.append(tag("tr", *drawn, class_=kind))
    caption = f"All rows: {shown.unit}, difference within seeds, and cost."
    parts = (tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", tag("table", *parts, class_="sortable"), class_="wide", tabindex="0")


def _verdict(row: Row) -> str:
    """The class of a verdict: better, worse, baseline or neither."""
    if not row.baseline:
        return "base"
    return row.verdict if row.verdict in ("better", "worse") else "neither"


def _effects(shown: Table) -> Markup:
    rows = by_effect(shown)
    if not any(row.pairs for row in rows):
        return Markup()
    cells = columns(shown)["difference [95 %]"]
    texts = {
        row.label: minus(cell) or row.verdict for row, cell in zip(shown.rows, cells, strict=True)
    }
    side = "left" if shown.better == "lower" else "right"
    about = (
        f"Difference from the baseline in {shown.unit}, the best first; {side} is better. "
        "Thick: 95 % interval of each row alone. Thin: intervals that hold for all "
        f"{shown.comparisons} rows together (each at 1 - 0.05 / {shown.comparisons}). Filled dots "
        "are what the table calls better or worse."
    )
    drawn = figures.draw_effects(rows, shown, _names(shown), texts)
    return tag("figure", tag("figcaption", about), drawn)


def _curves(shown: Table) -> Markup:
    curves = read_curves(shown)
    if not curves.rows:
        return tag("p", "No run has recorded a curve.")
    names = _names(shown)
    longest = max(curves.rows.values(), key=lambda curve: len(curve.steps)).steps
    at = [longest[round(part * (len(longest) - 1) / 3)] for part in range(4)]
    rows = []
    for label, curve in curves.rows.items():
        means = dict(zip(curve.steps, curve.values.mean(axis=0), strict=True))
        rows.append(
            [breakable(names[label]), *(f"{means[s]:.3f}" if s in means else "" for s in at)]
        )
    head = ["row", *(f"step {step}" for step in at)]
    data = html_table(f"Mean of {curves.unit} over seeds.", head, rows, class_="data")
    about = (
        "Mean over seeds; bands from the lowest to the highest seed. In colour: the rows with the "
        "best differences; baselines have the colour of the text."
    )
    return tag(
        "figure",
        tag("figcaption", about),
        _key(shown),
        tag("p", curves.unit, class_="ylabel"),
        figures.draw_curves(curves, _classes(shown)),
        tag("p", "step", class_="xlabel"),
        tag("details", tag("summary", "The figure as a table"), data),
    )


def _seeds(shown: Table) -> Markup:
    sign = 1 if shown.better == "lower" else -1
    rows = sorted((row for row in shown.rows if row.n), key=lambda row: sign * (row.mean or 0))
    if not rows:
        return Markup()
    cells = columns(shown)[shown.unit]
    texts = {row.label: cell for row, cell in zip(shown.rows, cells, strict=True)}
    about = (
        f"{shown.unit[0].upper()}{shown.unit[1:]} of each seed, and their mean, the best first. "
        "The line is the mean of the row that each is compared with."
    )
    drawn = figures.draw_seeds(rows, shown, _names(shown), texts)
    return tag("figure", tag("figcaption", about), drawn)


def _costs(shown: Table) -> Markup:
    drawn, same = [], []
    for cost, name in _COSTS.items():
        figure = figures.draw_costs(shown, cost, name, _classes(shown), _names(shown))
        known = {getattr(row, cost) for row in shown.rows} - {None}
        if figure:
            drawn.append(figure)
        elif known:
            same.append(f"{name}: {known.pop():,.0f}")
    parts = [_key(shown), tag("div", *drawn, class_="grid")] if drawn else []
    if same:
        parts.append(tag("p", f"The same in all rows: {'; '.join(same)}."))
    return join(*parts)


def _configurations(ablated: Ablated, shown: Table) -> Markup:
    differing = facts.config_differences(ablated, shown)
    rows = [
        [breakable(label), join(*_settings(settings)) if settings else "as the baseline"]
        for label, settings in differing.items()
    ]
    caption = "Config keys of each row that are not those of its baseline."
    return html_table(caption, ["row", "keys"], rows, class_="configs")


def _settings(settings: Mapping[str, object]) -> list[str]:
    shown = [tag("code", f"{key} = {value}") for key, value in settings.items()]
    return [part for each in shown for part in (each, Markup(" "))]


def _environment(made: Mapping[str, Sequence[tuple[str, int]]]) -> Markup:
    rows = []
    for key, values in made.items():
        texts = [f"{value} ({count} runs)" if len(values) > 1 else value for value, count in values]
        rows.append([key.replace("_", " "), ", ".join(texts)])
    return html_table("What made the finished runs.", ["what", "value"], rows) if rows else Markup()


def _again(ablated: Ablated, workdir: str, commits: list[str]) -> Markup:
    lines = facts.commands(ablated, workdir, commits)
    if not lines:
        text = (
            "The command was not recorded. Each run's folder has its whole config in config.json."
        )
        return tag("p", text)
    after = "" if len(commits) == 1 else " The runs are of several commits; see the environment."
    text = f"Finished runs are not trained again; another workdir begins anew.{after}"
    return join(tag("pre", "\n".join(lines), class_="command", tabindex="0"), tag("p", text))
