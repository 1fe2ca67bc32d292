"""Builds folders once. A folder appears only when it is whole: it is built under a name of its own
and renamed at the end, and is built again where its checksums no longer match.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator

from absl import logging
from etils import epath

_PARTIAL = re.compile(r".+\.partial-(?P<process>\d+)-[0-9a-f]{8}@(?P<host>.+)")
_SUMS = "checksums.json"  # of all other files of a folder: {name: [bytes, SHA-256]}


def built(folder: epath.Path, fill: Callable[[epath.Path], None]) -> epath.Path:
    """The folder, which `fill` makes where it is missing, or no longer what it was.

    Args:
      folder: on a local file system.
      fill: puts files into an empty folder.
    """
    damage = damage_of(folder) if folder.exists() else ""
    if damage is None:
        return folder
    if damage:
        logging.warning("%s is damaged (%s) and is built again", folder, damage)
    with building(folder) as partial:
        fill(partial)
    return folder


@contextlib.contextmanager
def building(folder: epath.Path) -> Iterator[epath.Path]:
    """Gives an empty folder to fill, which becomes `folder` when the block ends without error.

    After an error, also Ctrl-C, it is removed; what a killed process of this host left is removed
    by the next. If another process finishes the same folder first, that one stays; one that is
    damaged is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    partial = _unique(folder)
    partial.mkdir()
    try:
        yield partial
        sums = json.dumps({file.name: _sum(file) for file in sorted(partial.iterdir())}, indent=2)
        (partial / _SUMS).write_text(f"{sums}\n")
        if folder.exists() and damage_of(folder) is not None:
            folder.rename(damaged := _unique(folder))
            damaged.rmtree() if damaged.is_dir() else damaged.unlink()
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first, and has built the same
                raise
    finally:
        partial.rmtree(missing_ok=True)


def damage_of(folder: epath.Path) -> str | None:
    """What is no longer as it was written in a folder, in a few words; None where all is."""
    if not folder.is_dir():
        return "it is no folder"
    stats = [(file.name, os.stat(file)) for file in sorted(folder.iterdir())]
    return _damage(folder, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@functools.lru_cache(maxsize=64)  # so that a sweep reads each folder once
def _damage(folder: epath.Path, found: tuple[tuple[str, int, int], ...]) -> str | None:
    sizes = {name: size for name, size, _ in found}
    if _SUMS not in sizes:
        return f"it has no {_SUMS}"
    try:
        listed = json.loads((folder / _SUMS).read_text())
        written = {name: (size, digest) for name, (size, digest) in listed.items()}
    except (ValueError, AttributeError, TypeError):
        return f"{_SUMS} is not what was written"
    for name, (size, _) in written.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            return f"{name} has {sizes[name]:,} bytes, not {size:,}"
    for name, sums in written.items():
        if tuple(_sum(folder / name)) != sums:
            return f"{name} is not what was written"
    return None


def _sum(file: epath.Path) -> list:
    """Bytes and SHA-256 of a file; a gigabyte takes about a second."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return [stream.tell(), digest]


def _unique(folder: epath.Path) -> epath.Path:
    """A name beside a folder's that tells which process made it."""
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}@{socket.gethostname()}"
    return folder.parent / f"{folder.name}.partial-{unique}"


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
