"""How is a corpus made? Its documents are tokenized in batches, cut into rows and written, split by
split, in one pass over the source (two if a tokenizer must be trained) and in bounded memory.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from lm.data.array_record import SplitWriter, text_fields, write_metadata
from lm.data.deduplicate import SPLITS, Tally, distinct
from lm.data.make_tokenizer import make_tokenizer, watched
from lm.data.packing import Packer, PairPacker, PairRows, Rows
from lm.data.sources import Document, holds_pairs
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError

BATCH_CHARACTERS = 4_000_000  # of documents that are tokenized together


def build(
    folder: epath.Path,
    *,
    source: str,
    tokenizer: str,
    vocab_size: int | None,
    seq_len: int,
    validation_fraction: float,
) -> dict[str, Any]:
    """Fills `folder` with rows, metadata, `counts.npy` and `tokenizer.json`; returns the manifest.

    Args:
        folder: empty, on a local file system.
        source: see `prepare`, as for the others.
        tokenizer: its name.
        vocab_size: number of tokens.
        seq_len: L.
        validation_fraction: fraction of documents.

    Raises:
        UserError: see `prepare`.
    """
    started = time.monotonic()
    logging.info("Preparing %s with tokenizer %s in %s", source, tokenizer, folder)
    training = distinct(source, validation_fraction, Tally())
    made = make_tokenizer(
        tokenizer,
        vocab_size,
        watched(
            (document.name, text)
            for split, document in training
            if split == "train"
            for text in _texts(document)
        ),
    )
    tally = Tally()
    pairs = holds_pairs(source)
    splits = {split: _Split(folder, split, made, seq_len, pairs) for split in SPLITS}
    for batch in _batches(distinct(source, validation_fraction, tally)):
        encoded = iter(made.encode_batch([text for _, d in batch for text in _texts(d)]))
        for split, _ in batch:
            splits[split].packer.add(*itertools.islice(encoded, 2 if pairs else 1))
        for split in splits.values():
            split.write(split.packer.take())
    for split in splits.values():
        split.write(split.packer.finish())
        split.writer.close()
    train_tokens = int(splits["train"].counts.sum())
    if train_tokens < seq_len:
        raise UserError(
            f"the train split of {source} has {train_tokens} tokens, fewer than a row of "
            f"seq_len={seq_len}; use a shorter seq_len or more text"
        )
    fields = text_fields(seq_len, made.vocab_size, pairs)
    write_metadata(folder, [split.writer for split in splits.values()], fields)
    with (folder / "counts.npy").open("wb") as file:
        np.save(file, splits["train"].counts)
    if made.json is not None:
        (folder / "tokenizer.json").write_text(made.json)
    logging.info("Prepared %s in %.1f s", source, time.monotonic() - started)
    return {
        "hash": tally.hash,
        "duplicates": tally.duplicates,
        "empty": tally.empty,
        "tokenizer": made.spec,
        "splits": {
            name: {"documents": tally.documents[name], **split.summary()}
            for name, split in splits.items()
        },
    }


class _Split:
    """One split on its way to disk."""

    def __init__(
        self, folder: epath.Path, name: str, tokenizer: Tokenizer, length: int, pairs: bool
    ):
        vocab_size = tokenizer.vocab_size
        self.packer: Any = (PairPacker if pairs else Packer)(length, tokenizer.end)
        self.writer = SplitWriter(folder, name, text_fields(length, vocab_size, pairs))
        self.counts = np.zeros(vocab_size, np.int64)  # of targets
        self._rows = self._bytes = 0

    def write(self, rows: Rows | PairRows) -> None:
        self.writer.write(rows._asdict())
        targets = rows.tokens[:, 1:][rows.segments > 0]
        self.counts += np.bincount(targets, minlength=len(self.counts))
        self._rows += len(rows.tokens)
        self._bytes += int(rows.bytes.sum())

    def summary(self) -> dict[str, Any]:
        tokens = int(self.counts.sum())
        long = {"long": self.packer.long} if isinstance(self.packer, PairPacker) else {}
        return long | {
            "rows": self._rows,
            "tokens": tokens,
            "bytes": self._bytes,
            "bytes_per_token": self._bytes / tokens,
        }


def _texts(document: Document) -> list[str]:
    """What is tokenized of a document: of a pair, both sides."""
    return [text for text in (document.memory, document.text) if text is not None]


def _batches(
    documents: Iterable[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
    batch, characters = [], 0
    for split, document in documents:
        batch.append((split, document))
        characters += sum(map(len, _texts(document)))
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
