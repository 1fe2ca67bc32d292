"""Formats the comparison of an ablation as Markdown and CSV."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Sequence

from lm.experiment.ablation.statistics.notes import has_moderated
from lm.experiment.ablation.statistics.rows import Row, Table


def to_markdown(table: Table) -> str:
    """Formats the table as GitHub Markdown that is also aligned in a terminal, with its notes."""
    padded = []
    for name, cells in columns(table).items():
        cells = [cell.replace("|", r"\|") for cell in cells]
        width, side = max(map(len, [name, *cells])), "<" if name in ("row", "verdict") else ">"
        rule = "-" * max(2, width - 1) + ("-" if side == "<" else ":")
        padded.append([rule, *(f"{cell:{side}{len(rule)}}" for cell in [name, *cells])])
    rules, head, *body = ("| " + " | ".join(line) + " |\n" for line in zip(*padded, strict=True))
    notes = [*table.notes, *(f"Missing: {line}" for line in table.missing)]
    parts = [[head, rules, *body], [f"- {note}\n" for note in notes]]
    return "\n".join("".join(lines) for lines in parts if lines)


def columns(table: Table) -> dict[str, list[str]]:
    """The cells of each column by its name, row by row.

    Means and differences have two significant digits of their column's median standard error.
    """
    rows = table.rows
    mean = _format([r.standard_error for r in rows])
    change = _format([(r.interval[1] - r.interval[0]) / 4 for r in rows if r.interval], "+")
    found = {
        "row": [" ".join(r.label.split()) for r in rows],
        table.unit: [
            mean(r.mean) + mean(r.standard_error, " ± {}") + mean(r.value_interval, " [{}, {}]")
            for r in rows
        ],
        "n": [f"{r.n} of {r.n + r.missing}" if r.missing else f"{r.n}" for r in rows],
        "difference [95 %]": [change(r.difference) + change(r.interval, " [{}, {}]") for r in rows],
        "verdict": [r.verdict for r in rows],
        "moderated p": [_probability(r.p_moderated) for r in rows],
        "parameters": _amounts([r.parameters for r in rows]),
        "trainable": _amounts([r.trained_parameters for r in rows]),
        "FLOPs/token": _amounts([r.flops_per_token for r in rows]),
        "step memory": _amounts([r.memory for r in rows]),
    }
    if any(row.step_ratio for row in rows):
        found["step time"] = [f"{r.step_ratio:.2f}" if r.step_ratio else "" for r in rows]
    if not has_moderated(table):
        del found["moderated p"]
    if all(row.trained_parameters in (None, row.parameters) for row in rows):
        del found["trainable"]
    if all(row.memory is None for row in rows):
        del found["step memory"]
    return found


def _format(errors: Sequence[float | None], sign: str = "") -> Callable[..., str]:
    scales = [math.floor(math.log10(error)) for error in errors if error] or [-3]
    digits = max(0, 1 - math.floor(statistics.median(scales)))

    def form(value: float | tuple[float, ...] | None, around: str = "{}") -> str:
        values = value if isinstance(value, tuple) else (value,)
        return "" if None in values else around.format(*(f"{v:{sign}.{digits}f}" for v in values))

    return form


def _probability(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _amounts(values: Sequence[float | None]) -> list[str]:
    """Formats a column in one unit, three significant digits of its median: 0.831 M."""
    middle = statistics.median([value for value in values if value] or [1.0])
    units = {" T": 1e12, " G": 1e9, " M": 1e6, " k": 1e3}
    unit, size = next((pair for pair in units.items() if middle >= 0.5 * pair[1]), ("", 1.0))
    digits = max(0, 2 - math.floor(math.log10(middle / size)))
    return ["" if value is None else f"{value / size:.{digits}f}{unit}" for value in values]


def to_csv(table: Table) -> str:
    """Formats one line a row, in full precision; values of one cell are separated by spaces."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    for row in table.rows:
        cells = dataclasses.astuple(row)
        writer.writerow([" ".join(map(str, c)) if isinstance(c, tuple) else c for c in cells])
    return out.getvalue()
