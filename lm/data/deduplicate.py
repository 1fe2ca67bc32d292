"""Drops copies of documents and splits the rest. A document's split depends on nothing but its
text, so train and validation never share one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from lm.data import sources
from lm.data.sources import Document
from lm.data.tokenizer import encode_utf8
from lm.errors import UserError, counted

SPLITS: tuple[str, ...] = ("train", "validation")


@dataclass
class Tally:
    """What has passed of a source so far."""

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: int = 0  # documents left out because their text came before
    empty: int = 0  # documents left out because they have no text
    positions: tuple[float, float] = (1.0, 0.0)  # the least and the greatest of any document
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def hash(self) -> str:
        """Of the kept documents and their splits, in order."""
        return self._digest.hexdigest()

    def add(self, split: str, key: bytes) -> None:
        """Counts a kept document, given the SHA-256 of its text."""
        position, (least, greatest) = split_position(key), self.positions
        self.documents[split] += 1
        self.positions = (min(least, position), max(greatest, position))
        self._digest.update(split.encode() + key)


def split_position(key: bytes) -> float:
    """Where in [0, 1) a document falls, given the SHA-256 of its text: uniform over documents."""
    return int.from_bytes(key[:6], "big") / 2**48  # 48 bits: exact in a float


def distinct(source: str, validation: float, tally: Tally) -> Iterator[tuple[str, Document]]:
    """Yields (split, document) of each distinct document of `source`, and counts them in `tally`.

    Keeps 32 bytes (about 100 in Python) for each document that it has seen.

    Args:
        source: see `sources.documents`. Splits that it has of its own are kept.
        validation: a document is held out if its place is below this.
        tally: a new one.

    Raises:
        UserError: what the source raises; after the last document, no documents or an empty split.
    """
    seen: set[bytes] = set()
    for document in sources.documents(source):
        if not document.text:
            tally.empty += 1
            continue
        key = hashlib.sha256(encode_utf8("\0".join(document.texts))).digest()
        if key in seen:
            tally.duplicates += 1
            continue
        seen.add(key)
        split = document.split or ("validation" if split_position(key) < validation else "train")
        tally.add(split, key)
        yield split, document
    _check(source, validation, tally)


def _check(source: str, validation: float, tally: Tally) -> None:
    total = sum(tally.documents.values())
    if total == 0:
        raise UserError(
            f"{source} has no text ({counted(tally.empty, 'empty document')}); choose another"
        )
    least, greatest = tally.positions
    remedy = (
        f"use validation between {least:.6f} and {greatest:.6f}, or more documents"
        if total > 1
        else "give it as several files (split -C 64k FILE), since the split is by document"
    )
    for split, number in tally.documents.items():
        if number == 0:
            raise UserError(
                f"the {split} split of {source} is empty: it has "
                f"{counted(total, 'distinct document')}, and validation={validation}; {remedy}"
            )
