"""A bucket in memory, which epath and fsspec open as s3://."""

import tempfile

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem


class MemoryBucket(MemoryFileSystem):
    """As S3: a folder is there where a file is below it."""

    protocol = ("s3", "s3a")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def exists(self, path, **kwargs):
        path = self._strip_protocol(path)
        return path in self.store or self.isdir(path)

    def isdir(self, path):
        return any(name.startswith(f"{self._strip_protocol(path)}/") for name in self.store)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The address of an empty bucket, of this process alone: so are the local folders for it."""
    from etils.epath.backend import fsspec_backend

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(MemoryBucket, "store", {})
    monkeypatch.setattr(MemoryBucket, "pseudo_dirs", [""])
    fsspec.register_implementation("s3", MemoryBucket, clobber=True)
    fsspec_backend._get_filesystem.cache_clear()
    return "s3://bucket"
