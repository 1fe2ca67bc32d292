"""How does a corpus get ready for training, once, and stay ready? What was prepared is found again
by a hash of its description; what was not is built, and appears only when it is whole.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from lm.data import array_record, sources
from lm.data.build import build
from lm.data.cache import built, damage_of
from lm.data.deduplicate import SPLITS
from lm.data.make_tokenizer import check_tokenizer, open_tokenizer, tokenizer_fingerprint
from lm.data.synthetic import Language, language_of
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError

FORMAT = 5  # raise it when what is stored changes, so that nothing old is opened as new


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus."""

    folder: epath.Path
    manifest: dict[str, Any]  # what it is: see `prepare`
    tokenizer: Tokenizer

    @property
    def language(self) -> Language | None:
        """The synthetic language that it was drawn from; None for other text."""
        return language_of(self.manifest["source"])

    def rows(self, split: str) -> Any:
        """The rows of "train" or "validation": a sequence, read from disk where indexed.

        Each is {tokens [L + 1], segments [L], bytes []}: inputs are `tokens[:-1]`, targets
        `tokens[1:]`; segments number the documents within the row from 1, and 0 is padding; bytes
        is how many bytes of text the targets stand for. Of pairs, {encoder_tokens [L],
        encoder_segments [L]} are the texts that the segments answer.

        Raises:
            UserError: there is no such split.
        """
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; use train or validation")
        return array_record.read_rows(self.folder, split)

    def counts(self) -> np.ndarray:
        """How often each token is a target in train: int64 [V]."""
        with (self.folder / "counts.npy").open("rb") as file:
            return np.load(file)


def prepare(
    *,
    source: str,
    tokenizer: str = "bytes",
    vocab_size: int | None = None,
    seq_len: int,
    validation_fraction: float,
    cache: epath.PathLike,
) -> Corpus:
    """Opens the corpus so described, and prepares it first if that was not done before.

    A document's split depends on nothing but its text and `validation_fraction`, so train and
    validation share no document, whatever else the source holds. A source with a validation or
    test split of its own (some `tfds:` ones) keeps that instead, and a document that stands in
    both is left out of train.

    The manifest holds `source`, `seq_len`, `validation_fraction`, `tokenizer` (its spec), `hash`
    (of all distinct documents in order, and their splits), `duplicates` and `empty` (documents
    left out), `format`, and in `splits`, for each: `documents`, `rows`, `tokens` (targets),
    `bytes` (of text) and `bytes_per_token`; of pairs also `long`, how many were left out because a
    side is longer than a row; of a synthetic language also its `entropy`, nats per token. Beside
    it lie `counts.npy` and, unless the tokenizer is bytes or characters, `tokenizer.json`.

    Args:
        source: see `sources.documents`.
        tokenizer: `bytes`, `characters`, `bpe`, `wordpiece`, `unigram` (trained on the train
            split), or a path ending in `tokenizer.json`.
        vocab_size: number of tokens; None where the tokenizer has its own.
        seq_len: L, tokens to predict in a row.
        validation_fraction: fraction of documents that are held out, between 0 and 1.
        cache: folder that holds prepared corpora, on a local file system.

    Raises:
        UserError: an argument is out of range, the source is unknown, empty or not UTF-8, or a
            split has too little text.
    """
    if seq_len < 1:
        raise UserError(f"seq_len={seq_len} is not a number of tokens; use 1 or more, such as 256")
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"validation_fraction={validation_fraction} is not between 0 and 1; use for example "
            f"0.05"
        )
    check_tokenizer(tokenizer, vocab_size)
    source = sources.complete(source, tokenizer, vocab_size)
    wanted: dict[str, Any] = {
        "source": source,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "seq_len": seq_len,
        "validation_fraction": validation_fraction,
    }
    prints = [FORMAT, sources.fingerprint(source), tokenizer_fingerprint(tokenizer)]
    key = hashlib.sha256(json.dumps([wanted, prints], sort_keys=True).encode()).hexdigest()
    folder = epath.Path(cache).expanduser() / f"{source.partition(':')[0]}-{seq_len}-{key[:16]}"

    def fill(partial: epath.Path) -> None:
        manifest = {"format": FORMAT, **wanted, **build(partial, **wanted)}
        if drawn_from := language_of(source):
            manifest["entropy"] = drawn_from.entropy
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")

    return open_corpus(built(folder, fill))


def open_corpus(folder: epath.PathLike) -> Corpus:
    """Opens the folder of a prepared corpus; reads no text.

    Raises:
        UserError: the folder holds no prepared corpus, or one whose files have changed.
    """
    folder = epath.Path(folder)
    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder} holds no prepared corpus (no manifest.json); prepare it again")
    if damage := damage_of(folder):
        raise UserError(f"{folder} is damaged ({damage}); prepare it again")
    manifest = json.loads((folder / "manifest.json").read_text())
    stored = folder / "tokenizer.json"
    json_text = stored.read_text() if stored.exists() else None
    return Corpus(folder, manifest, open_tokenizer(manifest["tokenizer"], json_text))
