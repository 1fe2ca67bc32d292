"""How does a folder appear only when it is whole? It is built under a name of its own beside the
final one and renamed at the end, so neither a crash nor a second process leaves half of one.
"""

import contextlib
import os
import re
import socket
import uuid
from collections.abc import Iterator

from etils import epath

_PARTIAL = re.compile(r".+\.partial-(?P<process>\d+)-[0-9a-f]{8}@(?P<host>.+)")


@contextlib.contextmanager
def building(folder: epath.Path) -> Iterator[epath.Path]:
    """Gives an empty folder to fill, which becomes `folder` when the block ends without error.

    After an error, also Ctrl-C, it is removed; what a killed process of this host left is removed
    by the next. If another process finishes the same folder first, that one stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}@{socket.gethostname()}"
    partial = folder.parent / f"{folder.name}.partial-{unique}"
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first, and has built the same
                raise
    finally:
        partial.rmtree(missing_ok=True)


def _remove_leftovers(parent: epath.Path) -> None:
    for path in parent.glob("*.partial-*"):
        match = _PARTIAL.fullmatch(path.name)
        if match and match["host"] == socket.gethostname() and not _alive(int(match["process"])):
            path.rmtree(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
