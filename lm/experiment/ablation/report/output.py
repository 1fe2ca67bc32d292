"""Makes the tables of an ablation and writes them: as Markdown, CSV, LaTeX, a figure and a page."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from etils import epath

from lm.checkpoints.run_files import read_result
from lm.data.bucket import make_folder
from lm.data.files import replacing, write_text
from lm.devices.hosts import from_main
from lm.errors import UserError, counted, nearest
from lm.experiment.ablation.report import plot
from lm.experiment.ablation.report.html import make_page
from lm.experiment.ablation.report.latex import to_latex
from lm.experiment.ablation.report.recorded import Ablated
from lm.experiment.ablation.report.speed import with_speeds
from lm.experiment.ablation.report.table import to_csv, to_markdown
from lm.experiment.ablation.statistics.comparison import tabulate
from lm.experiment.ablation.statistics.rows import Table
from lm.experiment.primary_metric import primary_metric

Make = Callable[[Ablated, Sequence[Table], epath.Path], str]


def _text(form: Callable[[Table], str]) -> Make:
    return lambda ablated, tables, folder: "\n".join(map(form, tables))


# The formats that are text, by their name: the ending of their file, and what makes it.
_TEXTS: dict[str, tuple[str, Make]] = {
    "md": ("md", _text(to_markdown)),
    "csv": ("csv", lambda ablated, tables, folder: to_csv(tables[0])),
    "latex": ("tex", _text(to_latex)),
    "html": ("html", lambda ablated, tables, folder: make_page(ablated, tables, str(folder))),
}
FORMATS = (*_TEXTS, "png")


@dataclasses.dataclass(frozen=True)
class View:
    """What is shown of an ablation.

    Attributes:
      baseline: the label of the row that others are compared with; None: the first.
      rows: patterns of labels, such as "*max*"; none show all. The baseline is always shown.
      formats: the files to write, of FORMATS.
      against: config keys that group rows, for a baseline of each group; (): as the ablation says.
      margin: the largest difference that does not matter, for tests of equivalence; None: none.
    """

    baseline: str | None = None
    rows: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("md", "csv", "png")
    against: tuple[str, ...] = ()
    margin: float | None = None

    def __post_init__(self):
        if self.margin is not None and not (0 < self.margin < math.inf):
            raise UserError(f"--margin={self.margin} is no difference; use for example 0.01")
        for name in self.formats:
            if name not in FORMATS:
                known = ", ".join(FORMATS)
                raise UserError(f"--format={name} is not one of {known}{nearest(name, FORMATS)}")


def report_tables(ablated: Ablated, view: View, folder: epath.Path | None) -> str:
    """Writes the tables of `make_tables` to a folder, where one is given; formats them. Of several
    processes, the first does, which has written the results.
    """

    def write() -> str:
        tables = make_tables(ablated, view)
        lines = [*map(to_markdown, tables)]
        if folder is not None and view.formats:
            names = write_tables(ablated, tables, view.formats, folder)
            lines.append(f"written: {', '.join([str(folder / names[0]), *names[1:]])}")
        return "\n".join(lines)

    return from_main(write)


def make_tables(ablated: Ablated, view: View) -> list[Table]:
    """A table for each metric of an ablation; None: the primary metric of its config."""
    results = (read_result(point.workdir) for point in ablated.points)
    available = next(filter(None, results), {})
    tables = []
    for metric in ablated.source.metrics:
        each = primary_metric(ablated.config, metric, available)
        better = "lower" if each.lower_is_better else "higher"
        table = tabulate(
            ablated.points,
            metric=each.name,
            baseline=view.baseline,
            against=view.against or (() if view.baseline else ablated.source.against),
            margin=view.margin,
            matched=ablated.source.matched,
            better=better,
            protocol=ablated.source.protocol,
        )
        table = with_speeds(table, ablated.points[0].workdir.parent)
        tables.append(_select(_with_notes(table, ablated), view.rows))
    return tables


def _with_notes(table: Table, ablated: Ablated) -> Table:
    """The table with notes on its points."""
    notes = [*ablated.source.notes]
    if count := len(ablated.left_out):
        runs = counted(count, "other run")
        notes.append(f"Left out: {runs} of the folder that its points.json does not list.")
    return dataclasses.replace(table, notes=(*table.notes, *notes))


def _select(table: Table, patterns: Sequence[str]) -> Table:
    """The rows whose labels match a pattern, and their baselines."""
    if not patterns:
        return table
    labels = [row.label for row in table.rows]
    chosen = {label for label in labels if any(fnmatchcase(label, each) for each in patterns)}
    if not chosen:
        raise UserError(f"--rows={','.join(patterns)} matches no row; rows: {', '.join(labels)}")
    chosen |= {row.baseline for row in table.rows if row.label in chosen}
    kept = tuple(row for row in table.rows if row.label in chosen)
    note = f"Shown are {len(kept)} of {len(labels)} rows; p-values are adjusted for all of them."
    shown = tuple(f"{row.label} seed " for row in kept)
    missing = tuple(line for line in table.missing if line.startswith(shown))
    return dataclasses.replace(table, rows=kept, notes=(*table.notes, note), missing=missing)


def write_tables(
    ablated: Ablated, tables: Sequence[Table], formats: Sequence[str], folder: epath.PathLike
) -> list[str]:
    """Writes a file table.* for each format, each whole or not: table.csv and table.png of the
    first table, others of all; their names.
    """
    folder = epath.Path(folder)
    make_folder(folder)
    names = []
    for name, (ending, make) in _TEXTS.items():
        if name in formats:
            names.append(f"table.{ending}")
            write_text(folder / names[-1], make(ablated, tables, folder))
    if "png" in formats:
        names.append("table.png")
        with replacing(folder / names[-1]) as partial:
            plot.draw(tables[0], partial)
    return names
