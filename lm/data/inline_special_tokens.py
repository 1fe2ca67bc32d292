"""Encodes texts that hold special tokens by name, as chat templates write them; quoted text that
holds such a name stays text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.data.tokenizer import Encoded, Marker, Tokenizer, encode_utf8

# Unicode's noncharacters, which no text has that is meant for others.
AS_TEXT = "\ufdd0"  # within a special token's name: the name is text
END = "\ufdd1"  # the tokenizer's `end`, which may have no name
BEGINS, ENDS = "\ufdd2", "\ufdd3"  # around what the assistant says, where a template says so
OWN = (AS_TEXT, END, BEGINS, ENDS)


def quoted(text: str, tokenizer: Tokenizer) -> str:
    """A text that stays text within a marked one, whatever names it holds; UserError where it is
    none, see `encode_utf8`.
    """
    encode_utf8(text)
    # No name within a name, nor one of a single character, is taken for a token.
    found = _names(tokenizer.markers)
    return found.sub(lambda name: "".join(c + AS_TEXT for c in name[0]), without_marks(text))


def without_marks(text: str) -> str:
    """A marked text for a reader."""
    for mark in OWN:
        text = text.replace(mark, "")
    return text


def encode_marked(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Tokens of marked texts, without those that open and close texts.

    What stands between two special tokens is tokenized as a whole, as the library `tokenizers` does
    it. `spans` are those in the marked text; `byte_lengths` are not counted: zeros.
    """
    pieces = [_pieces(tokenizer, text) for text in texts]
    found: dict[bool, Any] = {}
    for behind in (False, True):
        texts_only = [p for each in pieces for p in each if p.token is None and p.behind == behind]
        some = [piece.raw.replace(AS_TEXT, "") for piece in texts_only]
        found[behind] = iter((tokenizer.behind_special if behind else tokenizer).encode_batch(some))
    encoded = []
    for each in pieces:
        ids, spans = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
        for piece in each:
            if piece.token is not None:
                ids.append(np.array([piece.token], np.int32))
                spans.append(np.array([[piece.begin, piece.begin + len(piece.raw.encode())]]))
                continue
            part = next(found[piece.behind])
            ids.append(part.ids)
            spans.append(piece.places(part.spans))
        tokens = np.concatenate(ids)
        lengths = np.zeros(len(tokens) + 1, np.int32)
        encoded.append(Encoded(tokens, lengths, np.concatenate(spans).astype(np.int32)))
    return encoded


class _Piece(NamedTuple):
    """A special token of a marked text, or what stands between two.

    Attributes:
      raw: as the text has it.
      begin: its first byte there.
      token: the id; None: it is text.
      behind: a special token stands before it.
    """

    raw: str
    begin: int
    token: int | None
    behind: bool

    def places(self, spans: np.ndarray) -> np.ndarray:
        """Spans of the text without `AS_TEXT` as spans of the whole marked one."""
        bytes_of, at, width = [], self.begin, len(AS_TEXT.encode())
        for part in self.raw.split(AS_TEXT):
            size = len(part.encode())
            bytes_of.append(np.arange(at, at + size))
            at += size + width
        place = np.append(np.concatenate(bytes_of), at - width)
        first, end = spans.T
        return np.stack([place[first], np.where(end > first, place[end - 1] + 1, place[first])], 1)


def _pieces(tokenizer: Tokenizer, text: str) -> list[_Piece]:
    """A marked text cut at its special tokens; spaces that these take with them are left out."""
    pieces: list[_Piece] = []
    markers = {**tokenizer.markers, END: Marker(tokenizer.end)}
    done, byte, strips = 0, 0, False

    def add(stop: int, before: Marker | None) -> None:
        nonlocal byte
        raw = text[done:stop]
        kept = raw.lstrip() if strips else raw
        begin = byte + len(raw[: len(raw) - len(kept)].encode())
        byte += len(raw.encode())
        kept = kept.rstrip() if before is not None and before.lstrip else kept
        if kept:
            pieces.append(_Piece(kept, begin, None, bool(pieces)))

    for match in _names(markers).finditer(text):
        marker = markers[match[0]]
        add(match.start(), marker)
        pieces.append(_Piece(match[0], byte, marker.token, bool(pieces)))
        byte += len(match[0].encode())
        done, strips = match.end(), marker.rstrip
    add(len(text), None)
    return pieces


def _names(markers: Mapping[str, Marker]) -> re.Pattern[str]:
    """Any of the names that is not quoted, the longest where one begins with another."""
    longest = sorted(markers, key=len, reverse=True)
    return re.compile(f"(?:{'|'.join(map(re.escape, longest)) or '(?!)'})(?!{AS_TEXT})")
