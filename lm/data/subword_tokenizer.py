"""Loads any `tokenizer.json` of Hugging Face `tokenizers`. No text is ever encoded to a special
token, no document is truncated, and the bytes of text behind each token are known exactly.
"""

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm.data.detokenizer import Decoder
from lm.data.files import read_text
from lm.data.special_tokens import SpecialTokens, post_processed, specials
from lm.data.tokenizer import ComparedByHash, Encoded, Marker, decode_utf8, encode_utf8
from lm.data.tokenizer_config import read_settings, with_added
from lm.data.tokenizer_json import (
    added_tokens,
    bytes_of_pieces,
    parse_tokenizer,
    reserved_tokens,
    sentinels_of,
    without_prefix_space,
    word_starts_of,
)
from lm.errors import UserError

if TYPE_CHECKING:
    import tokenizers

# Names of the special tokens where no file says them, the first that a tokenizer has: ours, then
# well-known ones.
ENDS = ("<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
STARTS = ("[CLS]", "<s>", "<|begin_of_text|>")
MASKS = ("<|mask|>", "[MASK]", "<mask>")
_UNCOMMON = "\ue000"  # of private use: no vocabulary has it


class SubwordTokenizer(ComparedByHash):
    """A tokenizer of the Hugging Face `tokenizers` library, loaded from its JSON."""

    def __init__(
        self,
        text: str,
        *,
        name: str,
        vocab_size: int | None = None,
        end: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        """Loads a tokenizer.

        Args:
            text: the content of a `tokenizer.json`.
            name: what the manifest calls it.
            vocab_size: at least its number of tokens, to leave room; None for just that number.
            end: the token that closes documents; None for `eos_token` of the settings, or else the
                first it has of `ENDS`.
            settings: what the files beside it say; see `read_settings`.

        Raises:
            UserError: it has no end token, has more tokens than `vocab_size`, or is not readable.
        """
        config = parse_tokenizer(text, name)
        self.settings: Mapping[str, Any] = dict(settings or {})
        added = added_tokens(config, self.settings)
        end = end or self.settings.get("eos_token")
        end = end or next((known for known in ENDS if known in added), None)
        if end not in added:
            raise UserError(
                f"{name} has no end-of-document token ({end or ', '.join(ENDS)}); add one of these "
                "to its added_tokens, or name it as eos_token in tokenizer_config.json beside it"
            )
        added[end]["special"] = True  # else its literal text would be encoded to it
        self.name = name
        self.json: str | None = text
        self._end_token = end
        self.end: int = added[end]["id"]
        masks = (self.settings.get("mask_token"), *MASKS)
        self.mask: int | None = next((added[key]["id"] for key in masks if key in added), None)
        self.sentinels = sentinels_of(added)
        self._backend = _backend(config)
        starts = (self.settings.get("bos_token"),) if self.settings else STARTS
        bos = next((added[key]["id"] for key in starts if key in added), None)
        post = post_processed(self._backend)
        self.specials = specials(post, self.settings, bos, self.end)
        opened = SpecialTokens.opened_by(self.specials.before)
        self.own_specials = self.specials if post is not None and post.after else opened
        self.start: int = [self.end if bos is None else bos, *self.specials.before][-1]
        size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        self.vocab_size = vocab_size or size
        if self.vocab_size < size:
            raise UserError(
                f"{name} has {size} tokens, more than vocab_size={vocab_size}; raise that"
            )
        reserved = reserved_tokens(config, added)
        self._is_reserved = np.zeros(self.vocab_size, bool)
        self._is_reserved[list(reserved.values())] = True
        special = [self.end, self.mask, *self.sentinels, *reserved.values()]
        self.ordinary: np.ndarray = np.arange(self.vocab_size) < size
        self.ordinary[[token for token in special if token is not None]] = False
        self.word_starts: np.ndarray = word_starts_of(config, added, self.vocab_size)
        flags = ("lstrip", "rstrip")
        self.markers: Mapping[str, Marker] = {
            key: Marker(number, *(bool(added[key].get(flag)) for flag in flags))
            for key, number in reserved.items()
        }
        self._literals = re.compile("|".join(map(re.escape, reserved)))
        self._pieces = bytes_of_pieces(config, added, self.end, self.vocab_size)
        self._decoder = Decoder(self._backend, config, added)
        self._piece_lengths = np.array([len(piece) for piece in self._pieces or []], np.int32)
        around = json.dumps([self.end, self.start, self.specials])
        self.hash = hashlib.sha256(f"{around} {self.vocab_size} {text}".encode()).hexdigest()

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any], text: str) -> "SubwordTokenizer":
        """The tokenizer that a manifest records, from its `spec` and its `tokenizer.json`."""
        return cls(text, **{key: value for key, value in spec.items() if key != "hash"})

    @property
    def spec(self) -> dict[str, Any]:
        """Name, vocabulary size, end token, hash and settings, as the manifest records them."""
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "end": self._end_token,
            "hash": self.hash,
            "settings": self.settings,
        }

    @property
    def behind_special(self) -> "SubwordTokenizer":
        """The same for text that stands behind a special token, and not where a text begins."""
        return self._behind

    @functools.cached_property
    def _behind(self) -> "SubwordTokenizer":
        config = without_prefix_space(parse_tokenizer(str(self.json), self.name), everywhere=False)
        if config == parse_tokenizer(str(self.json), self.name):
            return self
        return SubwordTokenizer.of_spec(self.spec, json.dumps(config))

    @functools.cached_property
    def _inner(self) -> Any:
        """The backend for text that goes on within a word."""
        config = parse_tokenizer(str(self.json), self.name)
        added_tokens(config, self.settings)[self._end_token]["special"] = True
        return _backend(without_prefix_space(config, everywhere=True))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokens of each text; `byte_lengths` sum to the text's length in UTF-8 bytes.

        Bytes that no token covers, such as spaces that a tokenizer drops, count for the token
        that follows them, or for END at the end.

        Raises:
            UserError: the text holds a special token's literal and it cannot be kept apart; see
                `encode_utf8`.
        """
        for text in texts:
            encode_utf8(text)
        if self._pieces is None:
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        else:  # without offsets: half as long again
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._checked(*each) for each in zip(texts, encodings, strict=True)]

    def decode(self, ids: Iterable[int], final: bool = True) -> str:
        """See `Tokenizer`."""
        if self._pieces is not None:
            return decode_utf8(b"".join(self._pieces[i] for i in ids), final)
        return self._decoder([int(i) for i in ids], final)

    def _checked(self, text: str, encoding: "tokenizers.Encoding") -> Encoded:
        ids = np.array(encoding.ids, np.int32)
        if self._is_reserved[ids].any():
            return self._apart(text)
        if self._pieces is not None:
            byte_lengths = np.append(self._piece_lengths[ids], np.int32(0))
            if byte_lengths.sum() == len(text.encode("utf-8")):
                return Encoded(ids, byte_lengths)
            encoding = self._backend.encode(text, add_special_tokens=False)  # now with offsets
        return _located(ids, text, encoding.offsets)

    def _apart(self, text: str) -> Encoded:
        """Encodes `text` cut inside each special token's literal, so that none is matched."""
        cuts = [match.start() + 1 for match in self._literals.finditer(text)]
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            backend = self._inner if start else self._backend
            encoding = backend.encode(text[start:stop], add_special_tokens=False)
            ids += encoding.ids
            offsets += [(first + start, end + start) for first, end in encoding.offsets]
        encoded = _located(np.array(ids, np.int32), text, offsets)
        if self._is_reserved[encoded.ids].any():
            raise UserError(
                f"{self.name} encodes ordinary text to a special token (in {text[:40]!r}...); "
                "use a tokenizer that keeps them apart, such as a byte-level one"
            )
        return encoded


def load_subword(path: str, vocab_size: int | None = None) -> SubwordTokenizer:
    """Loads the `tokenizer.json` at `path`, with what the files beside it say; see `read_settings`.

    Without an `eos_token` there, the end token is the first it has of `ENDS`.

    Raises:
        UserError: it makes no tokenizer that can be used (see `SubwordTokenizer`).
    """
    file = Path(path).expanduser()
    settings, text = read_settings(file.parent), read_text(file)
    parse_tokenizer(text, str(path))
    try:
        if added := settings.pop("added_tokens", None):
            text = with_added(text, added, str(path))
        made = SubwordTokenizer(text, name=str(path), vocab_size=vocab_size, settings=settings)
        made.encode_batch([_UNCOMMON])  # what lacks a token for unknown text fails at the first
        return made
    except UserError:
        raise
    except BaseException as error:  # of any kind, as `tokenizers` raises and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{path} makes no tokenizer ({' '.join(str(error).split())[:200]}); it is damaged, or "
            "of a version that the installed `tokenizers` cannot read"
        ) from None


def _backend(config: dict[str, Any]) -> Any:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(json.dumps(config))
    backend.no_truncation()  # many files ask for 512 tokens, and cut the rest off silently
    backend.no_padding()
    backend.encode_special_tokens = True  # special tokens in the text are text
    return backend


def _located(ids: np.ndarray, text: str, offsets: Sequence[tuple[int, int]]) -> Encoded:
    """Tokens with the first and last + 1 character of each, n of them."""
    characters = np.array(offsets, np.int64).reshape(-1, 2)
    _take_marks(characters, text)
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    starts = np.flatnonzero((data & 0xC0) != 0x80)  # character -> byte; 10xxxxxx continues one
    byte_of = np.append(starts, len(data))
    spans = byte_of[characters]
    return Encoded(ids, _byte_lengths(spans, len(data)), spans.astype(np.int32))


def _take_marks(characters: np.ndarray, text: str) -> None:
    """Lets a letter's tokens end behind the combining marks that a normaliser joined or dropped."""
    held = np.zeros(len(text) + 1, np.int64)
    np.add.at(held, characters[:, 0], 1)
    np.add.at(held, characters[:, 1], -1)
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    free = np.flatnonzero((np.cumsum(held)[:-1] == 0) & (points >= 0x300))
    marks = [place for place in free if unicodedata.category(text[place]).startswith("M")]
    # From every place the first at or behind it that is no such mark.
    behind = np.arange(len(text) + 1)
    behind[marks] = len(text)
    behind = np.minimum.accumulate(behind[::-1])[::-1]
    characters[:, 1] = behind[characters[:, 1]]


def _byte_lengths(spans: np.ndarray, size: int) -> np.ndarray:
    """Bytes from the end of one token to that of the next, and to the text's end: int32 [n + 1].

    Tokens that end together are pieces of a character, or of what became one: its bytes are
    dealt out evenly, the first tokens getting one more where that does not come out even.
    """
    ends = np.maximum.accumulate(spans[:, 1])
    lengths = np.diff(ends, prepend=0, append=size)
    firsts = np.flatnonzero(np.diff(ends, prepend=-1))  # of the tokens that end together
    numbers = np.diff(firsts, append=len(ends))
    lasts = firsts + numbers - 1
    shared = np.clip(ends[lasts] - spans[lasts, 0], 0, lengths[firsts])
    lengths[firsts] -= shared
    places = np.arange(len(ends)) - np.repeat(firsts, numbers)
    share, rest = (np.repeat(each, numbers) for each in np.divmod(shared, numbers))
    lengths[:-1] += share + (places < rest)
    return lengths.astype(np.int32)
