"""What does an ablation leave behind? Its table as text, as figures and as a picture."""

import os

from etils import epath

from lm import figure
from lm.table import Table, to_csv, to_markdown


def write(table: Table, folder: epath.PathLike) -> None:
    """Write table.md, table.csv and table.png into `folder`, each whole or not at all."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, put in {
        "table.md": lambda path: path.write_text(to_markdown(table)),
        "table.csv": lambda path: path.write_text(to_csv(table)),
        "table.png": lambda path: figure.draw(table, path),
    }.items():
        temporary = folder / f".{os.getpid()}.{name}"
        try:
            put(temporary)
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
