"""What folders in buckets (gs://, s3://) need beyond epath, which opens them by fsspec."""

import hashlib
import os
import tempfile
import time
from typing import Any

from etils import epath
from fsspec.config import conf
from fsspec.core import url_to_fs

# Another machine may write between two looks, as where a workdir is claimed.
for _protocol in ("s3", "gs", "gcs"):
    conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is of a bucket instead of a file system."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The absolute path, of a bucket too."""
    path = epath.Path(path)
    return path if in_bucket(path) else path.resolve()


def make_folder(path: epath.Path) -> None:
    """Makes a folder where there is none; a bucket has none without files, and is not made."""
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def modified(path: epath.Path) -> float:
    """When a file was last written, in seconds since 1970 by the clock of its server."""
    return (
        _system(path).modified(os.fspath(path)).timestamp()
        if in_bucket(path)
        else path.stat().mtime
    )


def move(folder: epath.Path, target: epath.Path) -> None:
    """Renames a folder; in a bucket, file by file."""
    if in_bucket(folder):
        _system(folder).mv(os.fspath(folder), os.fspath(target), recursive=True)
    else:
        make_folder(target.parent)
        folder.rename(target)


def files_below(folder: epath.Path) -> list[str]:
    """The files in a local folder and its folders, by their paths below it, sorted."""
    found = [
        (root / name).relative_to(folder) for root, _, names in folder.walk() for name in names
    ]
    return sorted(map(os.fspath, found))


def upload(file: epath.Path, target: epath.Path) -> None:
    """Copies a local file into a bucket, where it appears whole."""
    _system(target).put_file(os.fspath(file), os.fspath(target))


def download(source: epath.Path, file: epath.Path) -> None:
    """Copies a file of a bucket to a local one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _system(source).get_file(os.fspath(source), os.fspath(file))


def scratch_folder(remote: epath.Path) -> epath.Path:
    """A new local folder for a folder in a bucket, in place of the one that a killed process of
    this machine may have left; for the process that holds the workdir.
    """
    server = os.environ.get("AWS_ENDPOINT_URL", "")
    name = hashlib.sha256(f"{server} {os.fspath(remote)}".encode()).hexdigest()[:16]
    folder = epath.Path(tempfile.gettempdir()) / f"softmax-laboratory-{os.getuid()}-{name}"
    folder.rmtree(missing_ok=True)
    folder.mkdir(mode=0o700)
    return folder


class Mirror:
    """A local folder whose files are copied to a folder in a bucket: those that grow, as a bucket's
    cannot.
    """

    EVERY = 15.0  # seconds between two copies that nobody asks for

    def __init__(self, remote: epath.Path, name: str):
        self.remote, self.local = remote, scratch_folder(remote / name)
        self._copied: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()

    def copy(self, asked: bool) -> None:
        """Copies what has changed since the last copy; unless `asked`, only where it is due."""
        if not asked and time.monotonic() - self._last < self.EVERY:
            return
        for name in files_below(self.local):
            stat = os.stat(self.local / name)
            if self._copied.get(name) != (stat.st_size, stat.st_mtime_ns):
                upload(self.local / name, self.remote / name)
                self._copied[name] = (stat.st_size, stat.st_mtime_ns)
        self._last = time.monotonic()

    def close(self) -> None:
        """Copies, and removes the local folder."""
        self.copy(asked=True)
        self.local.rmtree(missing_ok=True)


def _system(path: epath.Path) -> Any:
    return url_to_fs(os.fspath(path))[0]
