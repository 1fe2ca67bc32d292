"""Packs documents into rows of one length. Documents follow each other with END between them, and
the stream is cut every L tokens, so that every token is a target once; of pairs, as many as fit
share a row, and none is cut.
"""

from typing import Any, NamedTuple

import numpy as np

from lm.data.tokenizer import Encoded


class Rows(NamedTuple):
    """N rows of length L. Inputs are `tokens[:, :-1]`, targets `tokens[:, 1:]`."""

    tokens: np.ndarray  # int32 [N, L + 1]
    segments: np.ndarray  # int32 [N, L]: document within the row, from 1; 0 is padding
    bytes: np.ndarray  # int64 [N]: of text that the row's targets stand for


class PairRows(NamedTuple):
    """N rows of pairs: those of their targets, and what each segment answers."""

    tokens: np.ndarray
    segments: np.ndarray
    bytes: np.ndarray
    encoder_tokens: np.ndarray  # int32 [N, L]
    encoder_segments: np.ndarray  # int32 [N, L]


class Packer:
    """Cuts the stream `END t1 .. tn END t1 .. tm END ...` into rows.

    Row i holds `stream[i * L : i * L + L + 1]`: rows overlap by one token, so that every token but
    the first END is a target exactly once. A document opens with END, and the next END closes it.
    """

    def __init__(self, length: int, end: int):
        """Starts an empty stream.

        Args:
            length: L, tokens to predict in a row.
            end: id of END.
        """
        self._length, self._end = length, end
        self._tokens = [np.array([end], np.int32)]
        self._bytes = [np.zeros(1, np.int32)]
        self._count = 1  # tokens that wait, the last target of the last row among them

    def add(self, document: Encoded) -> None:
        """Appends a document and its closing END."""
        self._tokens += [document.ids, np.array([self._end], np.int32)]
        self._bytes.append(document.byte_lengths)
        self._count += len(document.ids) + 1

    def take(self) -> Rows:
        """Cuts off all full rows (perhaps none); what remains waits for more documents."""
        number = (self._count - 1) // self._length
        tokens, weights = np.concatenate(self._tokens), np.concatenate(self._bytes)
        cut = number * self._length
        self._tokens, self._bytes = [tokens[cut:]], [weights[cut:]]
        self._count -= cut
        inputs = tokens[:cut].reshape(number, self._length)
        last = tokens[self._length : cut + 1 : self._length]
        return Rows(
            tokens=np.concatenate([inputs, last[:, None]], axis=1),
            segments=self._segments(inputs),
            bytes=weights[1 : cut + 1].reshape(number, self._length).sum(1, dtype=np.int64),
        )

    def finish(self) -> Rows:
        """The last row, padded with END in segment 0; no row if nothing waits to be predicted."""
        real = self._count - 1
        if real == 0:
            return self.take()
        padding = self._length - real
        self._tokens.append(np.full(padding, self._end, np.int32))
        self._bytes.append(np.zeros(padding, np.int32))
        self._count += padding
        rows = self.take()
        rows.segments[:, real:] = 0
        return rows

    def _segments(self, inputs: np.ndarray) -> np.ndarray:
        opens = inputs == self._end
        continues = ~opens[:, :1]  # the row begins inside a document, which is its segment 1
        return np.cumsum(opens, axis=1, dtype=np.int32) + continues


class PairPacker:
    """Puts pairs into rows, in order, as many as fit on both sides.

    A row's segment i is `END t1 .. tn` among the tokens, which the END of the next segment or of
    the padding closes, and `END s1 .. sm` among the encoder's tokens. Pairs with a side too long
    for a row are left out and counted.
    """

    def __init__(self, length: int, end: int):
        """Starts an empty row.

        Args:
            length: L, tokens on each side of a row.
            end: id of END.
        """
        self.long = 0  # pairs left out
        self._length, self._end = length, end
        self._full: list[PairRows] = []
        self._open()

    def add(self, encoder: Encoded, document: Encoded) -> None:
        """Puts a pair into the row, or into the next one."""
        sizes = np.array([len(document.ids) + 1, len(encoder.ids) + 1])
        if (sizes > self._length).any():
            self.long += 1
            return
        if (self._used + sizes > self._length).any():
            self._close()
        self._number += 1
        sides = (self._tokens, self._segments, document.ids), (*self._encoder, encoder.ids)
        for place, size, (tokens, segments, ids) in zip(self._used, sizes, sides, strict=True):
            tokens[place + 1 : place + size] = ids
            segments[place : place + size] = self._number
        self._used += sizes
        self._bytes += int(document.byte_lengths.sum())

    def take(self) -> PairRows:
        """All full rows (perhaps none)."""
        rows, self._full = self._full, []
        if not rows:
            shapes = ((0, self._length + 1), (0, self._length), (0,)) + 2 * ((0, self._length),)
            return PairRows(*(np.zeros(shape, np.int32) for shape in shapes))
        return PairRows(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))

    def finish(self) -> PairRows:
        """The row that is open, padded; no row if it is empty."""
        if self._number:
            self._close()
        return self.take()

    def _open(self) -> None:
        length, end = self._length, self._end
        self._tokens = np.full(length + 1, end, np.int32)
        self._segments = np.zeros(length, np.int32)
        self._encoder = np.full(length, end, np.int32), np.zeros(length, np.int32)
        self._used, self._number, self._bytes = np.zeros(2, int), 0, 0

    def _close(self) -> None:
        size: Any = np.int64(self._bytes)
        self._full.append(PairRows(self._tokens, self._segments, size, *self._encoder))
        self._open()
