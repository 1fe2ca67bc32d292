"""Keeps checkpoints on s3://, where Orbax cannot write: it saves into a local folder, from which
files are uploaded, the list of them with their checksums last; what is restored is downloaded.
"""

import hashlib
import os
import tempfile
from typing import Any

from etils import epath

from lm.data.bucket import download, files_below, in_bucket, scratch_folder, upload
from lm.data.files import parse_json, to_json

MANIFEST = "manifest.json"  # of all other files of a checkpoint: {name: [bytes, SHA-256]}
# What is written last, and so is there where a checkpoint is whole; by what its path begins with.
_LAST = {"s3://": MANIFEST, "gs://": "commit_success.txt"}


def is_complete(folder: epath.Path) -> bool:
    """Whether a folder holds a checkpoint that was written to its end."""
    return folder.name.isdecimal() and last_written(folder).exists()


def last_written(folder: epath.Path) -> epath.Path:
    """The file of a checkpoint's folder that is written last."""
    return folder / _LAST.get(os.fspath(folder)[:5], "_CHECKPOINT_METADATA")


def needs_staging(folder: epath.Path) -> bool:
    """Whether Orbax cannot write into a folder: it can on file systems and gs://."""
    return in_bucket(folder) and not os.fspath(folder).startswith("gs://")


class Staging:
    """The local copies of checkpoints of a folder in a bucket.

    Attributes:
      written: the local folder into which checkpoints are saved, to be uploaded.
    """

    def __init__(self, remote: epath.Path, writes: bool):
        self._remote = remote
        self._read = tempfile.TemporaryDirectory(prefix="softmax-laboratory-read-")
        self.written = scratch_folder(remote) if writes else epath.Path(self._read.name)

    def upload(self, step: int) -> None:
        """Copies a checkpoint into the bucket, where it counts once its manifest is there."""
        local, target = self.written / str(step), self._remote / str(step)
        target.rmtree(missing_ok=True) if target.exists() else None
        sums = {name: _sums(local / name) for name in files_below(local)}
        for name in sums:
            upload(local / name, target / name)
        (target / MANIFEST).write_text(to_json(sums, indent=1) + "\n")

    def download(self, step: int) -> epath.Path:
        """The local copy of a checkpoint, made at the first call.

        Raises:
          ValueError: it is not what was uploaded.
        """
        folder, source = epath.Path(self._read.name) / str(step), self._remote / str(step)
        if folder.exists():
            return folder
        manifest = source / MANIFEST
        sums: dict[str, Any] = parse_json(manifest.read_bytes(), manifest)
        partial = folder.parent / f"{step}.partial"
        for name, expected in sums.items():
            if not (source / name).exists():
                raise ValueError(f"{name} is missing")
            download(source / name, partial / name)
            if (found := _sums(partial / name)) != expected:
                raise ValueError(f"{name} has {found[0]:,} bytes that are not what was saved")
        partial.rename(folder)
        return folder

    def delete(self, step: int) -> None:
        """Removes a checkpoint, the manifest first, so that no part of one looks whole."""
        (self._remote / str(step) / MANIFEST).unlink(missing_ok=True)
        (self._remote / str(step)).rmtree(missing_ok=True)

    def remove_partial(self) -> None:
        """Removes what killed uploads have left."""
        for folder in self._remote.iterdir() if self._remote.exists() else ():
            if not is_complete(folder):
                folder.rmtree(missing_ok=True)

    def close(self) -> None:
        """Removes the local copies."""
        self.written.rmtree(missing_ok=True)
        self._read.cleanup()


def _sums(file: epath.Path) -> list[Any]:
    """Bytes and SHA-256 of a file."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return [stream.tell(), digest]
