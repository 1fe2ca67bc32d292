"""Lays out texts as rows of one length, with the special tokens around them; texts that are too
long are truncated, and short rows padded.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data.special_tokens import EncoderDecoderTokens, SpecialTokens
from lm.errors import UserError

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What rows are made of.

    Attributes:
      length: L, tokens in a row.
      start: the token that opens a row where `specials` are not known.
      end: the token that closes what is written, and fills rows.
      decoder: a decoder reads the rows, whose states have seen what stands before them alone.
      has_encoder: rows have an encoder's side and a decoder's.
      choices: C, texts to choose from; 0 where there are none.
      texts: T, texts with one target each that share a row at most.
      num_classes: V, the classes that the head chooses among; 0: the tokens of the vocabulary.
      labels: the names of these, in order; (): they are no fixed set.
      encoder_decoder: what stands around texts where rows have an encoder's side; None: END opens
        them.
      specials: what stands around the texts of a row; None: `start a end`, `start a end b end`.
    """

    length: int
    start: int
    end: int
    has_encoder: bool = False
    choices: int = 0
    texts: int = 1
    num_classes: int = 0
    encoder_decoder: EncoderDecoderTokens | None = None
    specials: SpecialTokens | None = None
    decoder: bool = False
    labels: tuple[str, ...] = ()

    def joined(self, parts: Sequence[np.ndarray]) -> Row:
        """The row of one text or two, with the special tokens around them.

        It holds "inputs", "segments" and "types", [L] each; types are those of `specials` for the
        second text and what closes it. Where the texts do not fit, the longer one loses its last
        tokens first.
        """
        around = self.around(len(parts))
        room = self.length - sum(map(len, around))
        if room < len(parts):
            raise UserError(
                f"config.data.seq_len = {self.length} leaves no room for {len(parts)} texts; use "
                f"{self.length - room + len(parts)} or more"
            )
        kept = fit([len(part) for part in parts], room)
        tokens, types = [np.array(around[0], int)], [np.zeros(len(around[0]), int)]
        for number, (part, size) in enumerate(zip(parts, kept, strict=True)):
            tokens += [part[:size], np.array(around[number + 1], int)]
            kind = number * self.special_tokens.second_type
            types.append(np.full(size + len(around[number + 1]), kind))
        return {
            "inputs": self.padded(np.concatenate(tokens), self.end),
            "segments": self.padded(np.ones(sum(map(len, tokens)), int), 0),
            "types": self.padded(np.concatenate(types), 0),
        }

    def around(self, texts: int) -> tuple[tuple[int, ...], ...]:
        """The special tokens of one text (before, after) or of two (before, between, after)."""
        tokens = self.special_tokens
        if texts == 1:
            return tokens.before, tokens.after
        return tokens.before, tokens.between, tokens.last

    @property
    def special_tokens(self) -> SpecialTokens:
        """`specials`, or what stands in for them."""
        return self.specials or SpecialTokens.closed_by((self.start,), self.end)

    def padded(self, values: Sequence[int] | np.ndarray, fill: int) -> np.ndarray:
        """Int32 [L]."""
        row = np.full(self.length, fill, np.int32)
        row[: len(values)] = values
        return row


def fit(sizes: Sequence[int], room: int) -> list[int]:
    """Sizes cut to sum to at most `room`, the longest first."""
    kept = list(sizes)
    while sum(kept) > room:
        longest = kept.index(max(kept))
        others = max([size for i, size in enumerate(kept) if i != longest], default=0)
        # Down to the next longest at once, or by what is too much.
        kept[longest] -= min(sum(kept) - room, max(kept[longest] - others, 1))
    return kept


def pack(rows: Iterable[Row], layout: Layout) -> Iterator[Row]:
    """Rows of one document each, several to a row, in their order, as long as they fit.

    A row has "tokens" [L + 1], "segments" [L] and "weights" [L]; documents are numbered from 1 in
    `segments`, do not see each other, and the first input of each is the token that opens it. A
    document's last token counts as it does alone.
    """
    waiting: list[Row] = []
    used = 0
    for row in rows:
        size = _inputs(row)
        between = _kept(waiting[-1], row) if waiting else 0
        if waiting and used + between + size > layout.length:
            yield _merged(waiting, layout)
            waiting, used, between = [], 0, 0
        waiting.append(row)
        used += between + size
    if waiting:
        yield _merged(waiting, layout)


def _inputs(row: Row) -> int:
    return int(np.sum(row["segments"] > 0))


def _kept(row: Row, following: Row) -> int:
    """1 where the last token of a document takes a place of its own: where it counts, and the next
    document does not open with the same.
    """
    size = _inputs(row)
    same = row["tokens"][size] == following["tokens"][0]
    return int(row["weights"][size - 1] > 0 and not same)


def _merged(rows: Sequence[Row], layout: Layout) -> Row:
    kept = [_kept(*pair) for pair in itertools.pairwise(rows)] + [1]
    sizes = [_inputs(row) + more for row, more in zip(rows, kept, strict=True)]
    both = list(zip(rows, sizes, strict=True))
    found = np.concatenate([row["tokens"][:size] for row, size in both])
    tokens = np.full(layout.length + 1, layout.end, np.int32)
    tokens[: len(found)] = found
    weights = np.concatenate([np.append(row["weights"], 0)[:size] for row, size in both])
    segments = np.repeat(np.arange(1, len(rows) + 1), sizes)
    real = len(found) - 1
    return {
        "tokens": tokens,
        "segments": layout.padded(segments[:real], 0),
        "weights": np.pad(weights[:real], (0, layout.length - real)).astype(np.float32),
    }
