"""Formats the comparison of an ablation as Markdown and CSV, and writes its files."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Sequence
from datetime import timedelta

from etils import epath

from lm.checkpoints.run_files import read_result
from lm.config import Config
from lm.data.files import replacing, write_text
from lm.devices.hosts import from_main
from lm.experiment.ablation import plot
from lm.experiment.ablation.comparison import Row, Table, tabulate
from lm.experiment.ablation.notes import has_moderated
from lm.experiment.ablation.points import Point
from lm.experiment.primary_metric import primary_metric


def report_tables(
    points: Sequence[Point],
    config: Config,
    metrics: Sequence[str | None],
    folder: epath.Path,
    notes: Sequence[str] = (),
) -> str:
    """Writes the tables of `make_tables` to a folder, with further notes; formats them. Of several
    processes, the first does, which has written the results.
    """

    def write() -> str:
        tables = [
            dataclasses.replace(table, notes=(*table.notes, *notes))
            for table in make_tables(points, config, metrics)
        ]
        write_tables(tables, folder)
        written = f"written: {folder / 'table.md'}, table.csv and table.png"
        return "\n".join([*map(to_markdown, tables), "", written])

    return from_main(write)


def make_tables(
    points: Sequence[Point], config: Config, metrics: Sequence[str | None]
) -> list[Table]:
    """A table for each metric; None: the primary metric of the config."""
    results = (read_result(point.workdir) for point in points)
    available = next(filter(None, results), {})
    chosen = [primary_metric(config, metric, available) for metric in metrics]
    return [
        tabulate(points, metric=each.name, better="lower" if each.lower_is_better else "higher")
        for each in chosen
    ]


def write_tables(tables: Sequence[Table], folder: epath.PathLike) -> None:
    """Writes table.md of all tables, table.csv and table.png of the first; each whole or not."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", "\n".join(map(to_markdown, tables)))
    write_text(folder / "table.csv", to_csv(tables[0]))
    with replacing(folder / "table.png") as partial:
        plot.draw(tables[0], partial)


def to_markdown(table: Table) -> str:
    """Formats the table as GitHub Markdown that is also aligned in a terminal, with its notes.

    Means and differences have two significant digits of their column's median standard error.
    """
    rows = table.rows
    mean = _format([r.standard_error for r in rows])
    change = _format([(r.interval[1] - r.interval[0]) / 4 for r in rows if r.interval], "+")
    columns = {
        "row": [" ".join(r.label.split()).replace("|", r"\|") for r in rows],
        table.unit: [
            mean(r.mean) + mean(r.standard_error, " ± {}") + mean(r.value_interval, " [{}, {}]")
            for r in rows
        ],
        "n": [f"{r.n} of {r.n + r.missing}" if r.missing else f"{r.n}" for r in rows],
        "difference [95 %]": [change(r.difference) + change(r.interval, " [{}, {}]") for r in rows],
        "verdict": [r.verdict for r in rows],
        "moderated p": [_probability(r.p_moderated) if r.interval else "" for r in rows],
        "parameters": _amounts([r.parameters for r in rows]),
        "trainable": _amounts([r.trained_parameters for r in rows]),
        "FLOPs/token": _amounts([r.flops_per_token for r in rows]),
        "tokens/s": _amounts([r.tokens_per_second for r in rows]),
        "step memory": _amounts([r.memory for r in rows]),
        "time": [str(timedelta(seconds=round(r.seconds))) if r.seconds else "" for r in rows],
    }
    if not has_moderated(table):
        del columns["moderated p"]
    if all(row.trained_parameters in (None, row.parameters) for row in rows):
        del columns["trainable"]
    if all(row.memory is None for row in rows):
        del columns["step memory"]
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


def _probability(value: float) -> str:
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
