"""Builds the rows of a dataset once and opens them again: they are found by a hash of what
describes them, and appear only when they are whole.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from lm.data.array_record import Fields, SplitWriter, read_rows, write_metadata
from lm.data.batches import RowSource
from lm.data.cache import built, damage_of
from lm.data.deduplicate import SPLITS
from lm.data.make_tokenizer import check_tokenizer, open_tokenizer, tokenizer_fingerprint
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError

FORMAT = 15  # raise it when what is stored changes, so that nothing old is opened as new


@dataclasses.dataclass(frozen=True)
class CachedRows:
    """Rows of a train and a validation split, on disk.

    Attributes:
        folder: holds them, with `manifest.json`, `counts.npy` and, unless the tokenizer is bytes or
            characters, `tokenizer.json`.
        manifest: what they are.
        tokenizer: of the rows.
    """

    folder: epath.Path
    manifest: Mapping[str, Any]
    tokenizer: Tokenizer

    def rows(self, split: str) -> RowSource:
        """The rows of "train" or "validation": a sequence, read from disk where indexed.

        Raises:
            UserError: there is no such split.
        """
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; use train or validation")
        return read_rows(self.folder, split)

    def counts(self) -> np.ndarray:
        """How often each token, or class of a task, is a target in train: int64 [V]."""
        return self.array("counts")

    def array(self, name: str) -> np.ndarray:
        """An array that was written beside the rows."""
        with (self.folder / f"{name}.npy").open("rb") as file:
            return np.load(file)


class RowWriter:
    """Writes the rows of all splits, and counts rows and targets.

    Attributes:
        num_rows: rows written so far, by split.
        counts: how often each of V tokens or classes was a target, int64 [V], by split.
    """

    def __init__(self, folder: epath.Path, fields: Fields, num_classes: int):
        """Takes an empty folder, what a row holds, and V."""
        self._folder, self._fields = folder, fields
        self._writers = {split: SplitWriter(folder, split, fields) for split in SPLITS}
        self.num_rows = dict.fromkeys(SPLITS, 0)
        self.counts = {split: np.zeros(num_classes, np.int64) for split in SPLITS}

    def write(self, split: str, rows: Mapping[str, np.ndarray], targets: np.ndarray) -> None:
        """Appends rows, of each field [N, ...], whose `targets` are counted."""
        first = next(iter(rows.values()))
        self._writers[split].write(rows)
        self.num_rows[split] += len(first)
        self.counts[split] += np.bincount(targets, minlength=len(self.counts[split]))

    def finish(self, tokenizer: Tokenizer, **arrays: np.ndarray) -> None:
        """Closes the files and writes what stands beside them."""
        for writer in self._writers.values():
            writer.close()
        write_metadata(self._folder, [*self._writers.values()], self._fields)
        for name, array in {"counts": self.counts["train"], **arrays}.items():
            with (self._folder / f"{name}.npy").open("wb") as file:
                np.save(file, array)
        if tokenizer.json is not None:
            (self._folder / "tokenizer.json").write_text(tokenizer.json)


def cached_rows(
    cache: epath.PathLike,
    name: str,
    description: Mapping[str, Any],
    fingerprints: object,
    build: Callable[[epath.Path], Mapping[str, Any]],
) -> CachedRows:
    """The rows that a description names; built where the cache lacks them.

    Args:
        cache: folder of all prepared rows, on a local file system.
        name: what the rows' own folder begins with.
        description: JSON; begins the manifest. Of it "seq_len", "tokenizer" and "vocab_size" are
            used here.
        fingerprints: JSON; changes when the same description may mean other rows.
        build: fills an empty folder, and returns the rest of the manifest.

    Raises:
        UserError: there is no such tokenizer, and what `build` raises.
    """
    length, tokenizer = description["seq_len"], description["tokenizer"]
    check_tokenizer(tokenizer, description["vocab_size"])
    key = [FORMAT, description, fingerprints, tokenizer_fingerprint(tokenizer)]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]

    def fill(folder: epath.Path) -> None:
        manifest = {"format": FORMAT, **description, **build(folder)}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")

    return open_rows(built(epath.Path(cache).expanduser() / f"{name}-{length}-{digest}", fill))


def open_rows(folder: epath.PathLike) -> CachedRows:
    """Opens the folder of prepared rows; reads no row.

    Raises:
        UserError: the folder holds no prepared rows, or its files have changed.
    """
    folder = epath.Path(folder)
    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder} holds no prepared corpus (no manifest.json); prepare it again")
    if damage := damage_of(folder):
        raise UserError(f"{folder} is damaged ({damage}); prepare it again")
    manifest = json.loads((folder / "manifest.json").read_text())
    stored = folder / "tokenizer.json"
    json_text = stored.read_text() if stored.exists() else None
    return CachedRows(folder, manifest, open_tokenizer(manifest["tokenizer"], json_text))
