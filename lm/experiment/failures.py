"""Reads and writes error.txt of a run that failed in a sweep: the traceback with which it did."""

import traceback

from etils import epath

from lm.config import plain
from lm.data.bucket import modified
from lm.data.files import write_text
from lm.errors import explain

FAILURE = "error.txt"


def report(workdir: epath.Path) -> list[str]:
    """The traceback of a run that failed, and when it was written; [] where it did not."""
    path = workdir / FAILURE
    return [path.read_text(), str(modified(path))] if path.exists() else []


def reason(workdir: epath.Path) -> str | None:
    """The error with which a run failed, see `reason_of`; None where it did not."""
    path = workdir / FAILURE
    return reason_of(path.read_text()) if path.exists() else None


def reason_of(text: str) -> str:
    """The last error of a traceback, in the first line of its message."""
    lines = text.rpartition("Traceback (most recent call last):")[2].splitlines()
    return next((line for line in lines if line.strip() and not line.startswith(" ")), "").strip()


def record(workdir: epath.Path, error: Exception) -> str:
    """Writes the traceback of a failure; says in one line what it was."""
    write_text(workdir / FAILURE, "".join(traceback.format_exception(error)))
    return explain(error) or plain(error)


def forget(workdir: epath.Path) -> None:
    """Removes the traceback of a run that has been trained since."""
    (workdir / FAILURE).unlink(missing_ok=True)
