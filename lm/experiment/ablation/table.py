"""What does an ablation leave behind? Its table as text, as figures and as a picture."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from lm.checkpoints.run_files import read_result
from lm.config import Config
from lm.data.files import replacing
from lm.experiment.ablation import plot
from lm.experiment.ablation.comparison import Table, tabulate, to_csv, to_markdown
from lm.experiment.primary_metric import headline


def tables(points: Sequence[Any], config: Config, metrics: Sequence[str | None]) -> list[Table]:
    """A table for each metric; None: the one by which runs of the config are judged."""
    finished = (read_result(epath.Path(point.workdir)) for point in points)
    scored = next(filter(None, finished), {})
    judged = [headline(config, metric, scored) for metric in metrics]
    return [
        tabulate(points, metric=each.name, better="lower" if each.lower else "higher")
        for each in judged
    ]


def write(table: Table, folder: epath.PathLike, also: Sequence[Table] = ()) -> None:
    """Write table.md, table.csv and table.png into `folder`, each whole or not at all.

    In table.md, those of other metrics follow.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, put in {
        "table.md": lambda path: path.write_text("\n".join(map(to_markdown, [table, *also]))),
        "table.csv": lambda path: path.write_text(to_csv(table)),
        "table.png": lambda path: plot.draw(table, path),
    }.items():
        with replacing(folder / name) as partial:
            put(partial)
