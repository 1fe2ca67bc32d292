"""Writes a file whole or not at all: under a name of its own beside it, renamed at the end."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """Gives the path to write to; the file takes its place when the block ends without error."""
    path = epath.Path(path)
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file of UTF-8 whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)
