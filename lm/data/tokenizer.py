"""The contract of tokenizers, and those that need no training: bytes (the default) and characters.
Each tells how many bytes of text a token stands for, which makes bits per byte exact.
"""

import codecs
import hashlib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from lm.data.special_tokens import SpecialTokens
from lm.errors import UserError

# Thirteen byte values never occur in UTF-8 (RFC 3629). Using them for special tokens keeps the
# vocabulary at 256, which any mesh divides.
END_BYTE = 0xFF  # opens and closes every document
MASK_BYTE = 0xFE  # stands for a hidden token in the masked objective
SENTINEL_BYTES = (0xC0, 0xC1, *range(0xF5, 0xFE))  # mark the gaps of span corruption


class Encoded(NamedTuple):
    """One document as tokens, without END, and the bytes of text behind each.

    Every byte counts for one token in `byte_lengths`; `spans` of tokens that share a character
    overlap, and leave out what no token stands for.
    """

    ids: np.ndarray  # int32 [n]
    byte_lengths: np.ndarray  # int32 [n + 1]: of each token, then of the closing END
    offsets: np.ndarray | None = None  # int32 [n, 2]: the spans; None: tokens share nothing

    @property
    def spans(self) -> np.ndarray:
        """The first byte of the text behind each token and the one after the last, int32 [n, 2]."""
        if self.offsets is not None:
            return self.offsets
        ends = np.cumsum(self.byte_lengths[:-1], dtype=np.int32)
        return np.stack([ends - self.byte_lengths[:-1], ends], axis=1)

    def within(self, begin: int, end: int) -> np.ndarray:
        """The places of the tokens that have a byte of text[begin:end], in bytes, or a share of a
        character there.
        """
        firsts, ends = self.spans.T
        return np.flatnonzero((ends > begin) & (firsts < end))


class Marker(NamedTuple):
    """A special token that a template may write: its id, and whether it takes the white space on
    its left or right with it.
    """

    token: int
    lstrip: bool = False
    rstrip: bool = False


class Tokenizer(Protocol):
    """What the data room and the objectives ask of a tokenizer."""

    name: str
    vocab_size: int
    end: int  # closes every document; no text is ever encoded to it
    start: int  # what a text's first token is predicted from: beginning-of-text, or else `end`
    specials: SpecialTokens  # what it puts around texts; `end` closes those that it does not close
    own_specials: SpecialTokens  # what it puts around texts, and nothing else
    mask: int | None  # None where a ready-made tokenizer has none
    sentinels: tuple[int, ...]
    json: str | None  # the content of its tokenizer.json; None for bytes and characters
    settings: Mapping[str, Any]  # what the files beside that say; see `read_settings`
    markers: Mapping[str, Marker]  # its special tokens by name

    @property
    def ordinary(self) -> np.ndarray:
        """Boolean [V]: the tokens that text is encoded to; the special ones are not."""
        ...

    @property
    def behind_special(self) -> "Tokenizer":
        """The same for text that stands behind a special token, and not where a text begins."""
        ...

    @property
    def word_starts(self) -> np.ndarray:
        """Boolean [V]: the tokens that begin a word, a space before it belonging to it."""
        ...

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

    def decode(self, ids: Iterable[int], final: bool = True) -> str:
        """The text of `ids`; END is left out, bytes that are not UTF-8 become U+FFFD.

        Unless `final`, more tokens may come, and a last character that lacks bytes is left out.
        """
        ...


class ComparedByHash:
    """A tokenizer that is equal to those of the same hash: they encode every text alike."""

    hash: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComparedByHash) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)


class _Untrained(ComparedByHash):
    """What the tokenizers have in common that are made of no file."""

    name: str
    vocab_size: int
    end_name: str  # as the manifest records `end`
    settings: Mapping[str, Any] = types.MappingProxyType({})
    markers: Mapping[str, Marker] = types.MappingProxyType({})
    json: str | None = None

    @property
    def behind_special(self) -> Any:
        """See `Tokenizer`."""
        return self

    @property
    def spec(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        size = self.vocab_size
        return {"name": self.name, "vocab_size": size, "end": self.end_name, "hash": self.hash}


class ByteTokenizer(_Untrained):
    """UTF-8 bytes as tokens: vocabulary 256, nothing to train, nothing unknown."""

    name = "bytes"
    vocab_size = 256
    end = END_BYTE
    start = END_BYTE
    end_name = "0xFF"
    specials = own_specials = SpecialTokens.closed_by((END_BYTE,), END_BYTE)
    mask: int | None = MASK_BYTE
    sentinels: tuple[int, ...] = SENTINEL_BYTES
    hash = hashlib.sha256(b"bytes, end 0xFF").hexdigest()

    @property
    def ordinary(self) -> np.ndarray:
        """Boolean [256]: the bytes that occur in UTF-8."""
        ordinary = np.ones(256, bool)
        ordinary[[END_BYTE, MASK_BYTE, *SENTINEL_BYTES]] = False
        return ordinary

    @property
    def word_starts(self) -> np.ndarray:
        """Boolean [256]: all but letters, digits, and the bytes of characters beyond ASCII."""
        return np.array([begins_word(bytes([byte])) for byte in range(256)])

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text's UTF-8 bytes; every token stands for one byte, END for none.

        Raises:
            UserError: see `encode_utf8`.
        """
        encoded = []
        for text in texts:
            ids = np.frombuffer(encode_utf8(text), np.uint8).astype(np.int32)
            byte_lengths = np.ones(len(ids) + 1, np.int32)
            byte_lengths[-1] = 0
            encoded.append(Encoded(ids, byte_lengths))
        return encoded

    def decode(self, ids: Iterable[int], final: bool = True) -> str:
        """See `Tokenizer`."""
        return decode_utf8(bytes(i for i in ids if i != END_BYTE), final)


_SURROGATES = (0xD800, 0xE000)  # code points that stand for no character


class CharacterTokenizer(_Untrained):
    """Characters as tokens: token i is the i-th code point, and U+0000 opens and closes documents.

    For text over an alphabet of its own, such as a synthetic language; ordinary text fits only a
    vocabulary above its highest code point.
    """

    name = "characters"
    end = 0
    start = 0
    end_name = "U+0000"
    specials = own_specials = SpecialTokens.closed_by((0,), 0)
    mask: int | None = None
    sentinels: tuple[int, ...] = ()

    def __init__(self, vocab_size: int):
        """Characters below `vocab_size`, the surrogates not counted."""
        self.vocab_size = vocab_size
        self.hash = hashlib.sha256(f"characters, {vocab_size}".encode()).hexdigest()

    @property
    def ordinary(self) -> np.ndarray:
        """Boolean [V]: all but END."""
        return np.arange(self.vocab_size) != self.end

    @property
    def word_starts(self) -> np.ndarray:
        """Boolean [V]: every character is a word."""
        return np.ones(self.vocab_size, bool)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text's characters; every token stands for its bytes in UTF-8, END for none.

        Raises:
            UserError: a text holds U+0000 or a character beyond the vocabulary; see `encode_utf8`.
        """
        for text in texts:
            encode_utf8(text)
        return [self._encode(text) for text in texts]

    def decode(self, ids: Iterable[int], final: bool = True) -> str:
        """The text of `ids`; END is left out. Every token is a whole character."""
        del final
        points = np.fromiter(ids, np.int64)
        points = points[points != self.end]
        points[points >= _SURROGATES[0]] += _SURROGATES[1] - _SURROGATES[0]
        return points.astype("<u4").tobytes().decode("utf-32-le")

    def _encode(self, text: str) -> Encoded:
        points = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)
        byte_lengths = 1 + sum(
            (points >= first).astype(np.int32) for first in (0x80, 0x800, 1 << 16)
        )
        ids = np.where(points < _SURROGATES[0], points, points - _SURROGATES[1] + _SURROGATES[0])
        outside = (ids == self.end) | (ids >= self.vocab_size)
        if outside.any():
            raise UserError(
                f"tokenizer characters of vocab_size={self.vocab_size} has no token for U+"
                f"{points[outside][0]:04X}; use a vocab_size above the text's highest code point, "
                "or bytes"
            )
        return Encoded(ids.astype(np.int32), np.append(byte_lengths, 0).astype(np.int32))


def encode_utf8(text: str) -> bytes:
    """The bytes of a text.

    Raises:
        UserError: it holds a code point that stands for no character: half of one that JSON writes
            in two, or a byte of the command line that is not UTF-8.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.start + 20]
        raise UserError(
            f"the text {around!a} holds U+{ord(text[error.start]):04X}, which is no character "
            "but half of one, or a byte that is not UTF-8; remove it, or write the text as UTF-8"
        ) from None


def decode_utf8(data: bytes, final: bool = True) -> str:
    """The text of bytes; those that are not UTF-8 become U+FFFD. Unless `final`, a last character
    that lacks bytes is left out.
    """
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data, final)


def begins_word(piece: bytes) -> bool:
    """Whether bytes begin a word: a letter, a digit or a byte beyond ASCII goes on with one.

    So a space, a line's end or a bracket belongs to the word that follows it, as a byte-level
    tokenizer's pieces have it.
    """
    return not (piece[:1].isalnum() or piece[:1] >= b"\x80")
