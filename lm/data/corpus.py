"""Prepares a corpus of text: its documents are tokenized in batches, cut into rows and written in
one pass over the source (two if a tokenizer must be trained), in bounded memory.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from absl import logging
from etils import epath

from lm.config import Config, Key, keys_of
from lm.data import sources
from lm.data.array_record import text_fields
from lm.data.batches import Groups
from lm.data.cached_rows import CachedRows, RowWriter, cached_rows, open_rows
from lm.data.deduplicate import SPLITS, Tally, distinct
from lm.data.documents import Documents
from lm.data.make_tokenizer import make_tokenizer, warn_of_long_words
from lm.data.packing import Packer, PairPacker, PairRows, Rows
from lm.data.sources import Document, holds_pairs
from lm.data.synthetic import Language, language_of
from lm.errors import UserError

if TYPE_CHECKING:
    from lm.data.objectives import Objective

BATCH_CHARACTERS = 4_000_000  # of documents that are tokenized together


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and how it is cut into rows.

    Attributes:
      source: see `sources.documents`.
      tokenizer: `bytes`, `characters`, `bpe`, `wordpiece`, `unigram` (trained on the train split),
        or a path ending in `tokenizer.json`.
      vocab_size: number of tokens; None where the tokenizer has its own.
      seq_len: L, tokens to predict in a row.
      validation_fraction: fraction of documents that are held out.

    Raises:
      UserError: a number is out of its bounds.
    """

    source: Annotated[str, Key("data.source")]
    tokenizer: Annotated[str, Key("data.tokenizer")] = "bytes"
    vocab_size: Annotated[int | None, Key("data.vocab_size", at_least=2, below=1_000_001)] = None
    seq_len: Annotated[int, Key("data.seq_len", at_least=1)]
    validation_fraction: Annotated[float, Key("data.validation_fraction", above=0, below=1)]

    def __post_init__(self):
        for key in keys_of(DataConfig).values():
            key.check({"data": vars(self)})


@dataclasses.dataclass(frozen=True)
class Corpus(CachedRows):
    """Prepared text; see `Dataset`.

    A row is {tokens [L + 1], segments [L], bytes []}: inputs are `tokens[:-1]`, targets
    `tokens[1:]`; segments number the documents within the row from 1, and 0 is padding; bytes is
    how many bytes of text the targets stand for. Of pairs, {encoder_tokens [L], encoder_segments
    [L]} are the texts that the segments answer.
    """

    evaluator = "likelihood"
    metrics = ()

    @property
    def language(self) -> Language | None:
        """The synthetic language that it was drawn from; None for other text."""
        return language_of(self.manifest["source"])

    def objective(self, config: Config) -> "Objective":
        """See `Dataset`: the one that config.objective names."""
        from lm.data.objectives import build_objective  # which imports jax

        return build_objective(config, self.tokenizer)

    def documents(self) -> Documents | None:
        """The held-out documents; None of pairs, which are packed otherwise."""
        if holds_pairs(self.manifest["source"]):
            return None
        tokens, sizes = self.array("documents").T
        return Documents(tokens, sizes, self.manifest["seq_len"])

    def row_groups(self, config: Config) -> Groups | None:
        """See `Dataset`: all rows alike."""
        del config


def prepare(data: DataConfig, cache: epath.PathLike) -> Corpus:
    """Opens a corpus, and prepares it first if that was not done before, in the folder `cache`, on
    a local file system.

    A document's split depends on nothing but its text and `validation_fraction`, so train and
    validation share no document, whatever else the source holds. A source with a validation or
    test split of its own (some `tfds:` ones) keeps that instead, and a document that stands in
    both is left out of train.

    The manifest holds `source`, `seq_len`, `validation_fraction`, `tokenizer` (its spec), `hash`
    (of all distinct documents in order, and their splits), `duplicates` and `empty` (documents
    left out), `format`, and in `splits`, for each: `documents`, `rows`, `tokens` (targets),
    `bytes` (of text) and `bytes_per_token`; of pairs also `long`, how many were left out because a
    side is longer than a row; of a synthetic language also its `entropy`, nats per token.

    Raises:
        UserError: the source is unknown, empty or not UTF-8, or a split has too little text.
    """
    source = sources.complete(data.source, data.tokenizer, data.vocab_size)
    data = dataclasses.replace(data, source=source)

    def build(folder: epath.Path) -> dict[str, Any]:
        manifest = _build(folder, data)
        language = language_of(source)
        return manifest | ({"entropy": language.entropy} if language else {})

    name, prints = source.partition(":")[0], sources.fingerprint(source)
    return Corpus(**vars(cached_rows(cache, name, dataclasses.asdict(data), prints, build)))


def open_corpus(folder: epath.PathLike) -> Corpus:
    """Opens the folder of a prepared corpus; see `open_rows`."""
    return Corpus(**vars(open_rows(folder)))


def _build(folder: epath.Path, data: DataConfig) -> dict[str, Any]:
    """Fills a folder with the rows of a corpus; see `prepare`."""
    started, source, seq_len = time.monotonic(), data.source, data.seq_len
    logging.info("Preparing %s with tokenizer %s in %s", source, data.tokenizer, folder)
    training = distinct(source, data.validation_fraction, Tally())
    texts = ((d.name, text) for split, d in training if split == "train" for text in d.texts)
    made = make_tokenizer(data.tokenizer, data.vocab_size, warn_of_long_words(texts))
    tally, pairs = Tally(), holds_pairs(source)
    packers = {split: (PairPacker if pairs else Packer)(seq_len, made.end) for split in SPLITS}
    writer = RowWriter(folder, text_fields(seq_len, made.vocab_size, pairs), made.vocab_size)
    num_bytes, documents = dict.fromkeys(SPLITS, 0), []

    def write(split: str, rows: Rows | PairRows) -> None:
        writer.write(split, rows._asdict(), rows.tokens[:, 1:][rows.segments > 0])
        num_bytes[split] += int(rows.bytes.sum())

    for batch in _batches(distinct(source, data.validation_fraction, tally)):
        encoded = iter(made.encode_batch([text for _, d in batch for text in d.texts]))
        for split, _ in batch:
            own = list(itertools.islice(encoded, 2 if pairs else 1))
            packers[split].add(*own)
            if split == "validation":
                documents.append((len(own[-1].ids) + 1, int(own[-1].byte_lengths.sum())))
        for split, packer in packers.items():
            write(split, packer.take())
    for split, packer in packers.items():
        write(split, packer.finish())
    tokens = {split: int(counts.sum()) for split, counts in writer.counts.items()}
    if tokens["train"] < seq_len:
        raise UserError(
            f"the train split of {source} has {tokens['train']} tokens, fewer than a row of "
            f"seq_len={seq_len}; use a shorter seq_len or more text"
        )
    writer.finish(made, documents=np.array(documents, np.int64).reshape(-1, 2))
    logging.info("Prepared %s in %.1f s", source, time.monotonic() - started)
    splits = {
        split: {
            "documents": tally.documents[split],
            **({"long": packer.long} if isinstance(packer, PairPacker) else {}),
            "rows": writer.num_rows[split],
            "tokens": tokens[split],
            "bytes": num_bytes[split],
            "bytes_per_token": num_bytes[split] / tokens[split],
        }
        for split, packer in packers.items()
    }
    about = {"hash": tally.hash, "duplicates": tally.duplicates, "empty": tally.empty}
    return {**about, "tokenizer": made.spec, "splits": splits}


def _batches(documents: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    batch, characters = [], 0
    for split, document in documents:
        batch.append((split, document))
        characters += sum(map(len, document.texts))
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
