"""Lays out texts as rows of one length, with the special tokens around them; texts that are too
long are truncated, and short rows padded.
"""

import dataclasses
from collections.abc import Sequence

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
