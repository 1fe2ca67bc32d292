"""How do the pieces of an example become a row of one length? With the tokens that open and close a
text between them, cut where they are too long, and padded where they are short.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.errors import UserError
from lm.frame import Frame

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What rows are made of.

    Attributes:
      length: L, tokens in a row.
      start: the token that opens a row: [CLS] where the tokenizer has it, else `end`.
      end: the token that closes each text.
      memory: rows have an encoder's side and a decoder's.
      choices: C, texts to choose from; 0 where there are none.
      outcomes: V, what the head chooses among; 0: words.
      frame: what stands around texts where there is memory; None: END opens them.
    """

    length: int
    start: int
    end: int
    memory: bool = False
    choices: int = 0
    outcomes: int = 0
    frame: Frame | None = None

    def joined(self, parts: Sequence[np.ndarray]) -> Row:
        """The row of start a end, or of start a end b end.

        It holds "inputs", "segments" and "types", [L] each; types are 1 for b and what
        closes it. Where the texts do not fit, the longer one loses its last tokens first.
        """
        room = self.length - 1 - len(parts)
        if room < len(parts):
            raise UserError(
                f"config.data.length = {self.length} leaves no room for {len(parts)} texts; use "
                f"{2 * len(parts) + 1} or more"
            )
        kept = fit([len(part) for part in parts], room)
        tokens, types = [np.array([self.start])], [np.zeros(1, int)]
        for number, (part, size) in enumerate(zip(parts, kept, strict=True)):
            tokens += [part[:size], np.array([self.end])]
            types.append(np.full(size + 1, number))
        return {
            "inputs": self.padded(np.concatenate(tokens), self.end),
            "segments": self.padded(np.ones(sum(kept) + 1 + len(parts), int), 0),
            "types": self.padded(np.concatenate(types), 0),
        }

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
    `segments`, do not see each other, and the first input of each is the token that opens it.
    """
    waiting: list[Row] = []
    used = 0
    for row in rows:
        size = int(np.sum(row["segments"] > 0))
        if waiting and used + size > layout.length:
            yield _merged(waiting, layout)
            waiting, used = [], 0
        waiting.append(row)
        used += size
    if waiting:
        yield _merged(waiting, layout)


def _merged(rows: Sequence[Row], layout: Layout) -> Row:
    sizes = [int(np.sum(row["segments"] > 0)) for row in rows]
    last = rows[-1]["tokens"][sizes[-1]]
    inputs = [row["tokens"][:size] for row, size in zip(rows, sizes, strict=True)]
    tokens = np.full(layout.length + 1, layout.end, np.int32)
    tokens[: sum(sizes) + 1] = np.append(np.concatenate(inputs), last)
    weights = np.zeros(layout.length, np.float32)
    weights[: sum(sizes)] = np.concatenate(
        [row["weights"][:size] for row, size in zip(rows, sizes, strict=True)]
    )
    segments = np.repeat(np.arange(1, len(rows) + 1), sizes)
    return {"tokens": tokens, "segments": layout.padded(segments, 0), "weights": weights}
