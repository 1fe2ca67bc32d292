"""Reads and writes error.txt of a point that failed: the traceback with which it did."""

import traceback

from etils import epath

from lm.config import plain
from lm.data.bucket import modified
from lm.data.files import write_text
from lm.errors import explain

_NAME = "error.txt"


def report(workdir: epath.Path) -> list[str]:
    """The traceback of a point that failed, and when it was written; [] where it did not."""
    path = workdir / _NAME
    return [path.read_text().strip(), str(modified(path))] if path.exists() else []


def record(workdir: epath.Path, error: Exception) -> str:
    """Writes the traceback of a failure; says in one line what it was."""
    write_text(workdir / _NAME, "".join(traceback.format_exception(error)))
    return explain(error) or plain(error)


def forget(workdir: epath.Path) -> None:
    """Removes the traceback of a point that has been trained since."""
    (workdir / _NAME).unlink(missing_ok=True)
