"""How does text become tokens, and how many bytes of text does each token stand for? The answer
to the second makes bits per byte exact, so that tokenizers can be compared. Here are the contract
and the default, bytes; `subword.py` has the others and `make_tokenizer.py` turns names into them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

# Thirteen byte values never occur in UTF-8 (RFC 3629). Using them for special tokens keeps the
# vocabulary at 256, which any mesh divides.
END_BYTE = 0xFF  # opens and closes every document
MASK_BYTE = 0xFE  # stands for a hidden token in the masked objective
SENTINEL_BYTES = (0xC0, 0xC1, *range(0xF5, 0xFE))  # mark the gaps of span corruption


class Encoded(NamedTuple):
    """One document as tokens, without END, and the bytes of text behind each."""

    ids: np.ndarray  # int32 [n]
    byte_lengths: np.ndarray  # int32 [n + 1]: of each token, then of the closing END


class Tokenizer(Protocol):
    """What the data room and the objectives ask of a tokenizer."""

    name: str
    vocab_size: int
    end: int  # opens and closes every document; no text is ever encoded to it
    mask: int | None  # None where a ready-made tokenizer has none
    sentinels: tuple[int, ...]
    json: str | None  # the content of its tokenizer.json; None for bytes

    @property
    def hash(self) -> str:
        """Equal for tokenizers that encode every text alike."""
        ...

    @property
    def spec(self) -> dict[str, Any]:
        """Name, vocabulary size, end token and hash, as the manifest records them."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokens of each text; `byte_lengths` sum to the text's length in UTF-8 bytes."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; END is left out, bytes that are not UTF-8 become U+FFFD."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as tokens: vocabulary 256, nothing to train, nothing unknown."""

    name = "bytes"
    vocab_size = 256
    end = END_BYTE
    mask: int | None = MASK_BYTE
    sentinels: tuple[int, ...] = SENTINEL_BYTES
    json: str | None = None
    hash = hashlib.sha256(b"bytes, end 0xFF").hexdigest()

    @property
    def spec(self) -> dict[str, Any]:
        """Name, vocabulary size, end token and hash, as the manifest records them."""
        return {"name": "bytes", "vocab_size": 256, "end": "0xFF", "hash": self.hash}

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text's UTF-8 bytes; every token stands for one byte, END for none."""
        encoded = []
        for text in texts:
            ids = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)
            byte_lengths = np.ones(len(ids) + 1, np.int32)
            byte_lengths[-1] = 0
            encoded.append(Encoded(ids, byte_lengths))
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; END is left out, bytes that are not UTF-8 become U+FFFD."""
        return bytes(i for i in ids if i != END_BYTE).decode("utf-8", "replace")
