"""Finds the documents within the rows of held-out text, and samples whole ones, so that tokenizers
are judged on the same text.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.batches import RowSource
from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of a split, in the order in which `Packer` put them into rows.

    Attributes:
      tokens: the targets of each, its closing END among them, int64 [D].
      bytes: of its text, int64 [D].
      seq_len: L, positions of a row.
    """

    tokens: np.ndarray
    bytes: np.ndarray
    seq_len: int

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """The position after each document's last, in the stream that the rows cut, [D]."""
        return np.cumsum(self.tokens)

    def at(self, rows: Sequence[int]) -> np.ndarray:
        """The document at each position of these rows, [len(rows), L]; D at padding."""
        places = np.asarray(rows, np.int64)[:, None] * self.seq_len + np.arange(self.seq_len)
        return np.searchsorted(self.ends, places, side="right")

    def order(self) -> np.ndarray:
        """The numbers of all documents in an order that is the same for every tokenizer."""
        return np.random.default_rng(0).permutation(len(self.tokens))

    def sample(self, num_bytes: int) -> np.ndarray:
        """Which documents are the first of `order` that have `num_bytes` together, [D]: the last of
        them is whole, so that they may have more.

        Raises:
          UserError: all documents have fewer.
        """
        if num_bytes > (most := int(self.bytes.sum())):
            raise UserError(
                f"config.evaluation.num_bytes = {num_bytes}, but the held-out text has {most} "
                "bytes; use at most these, or raise config.data.validation_fraction"
            )
        order = self.order()
        before = np.cumsum(self.bytes[order]) - self.bytes[order]
        chosen = np.zeros(len(order), bool)
        chosen[order[before < num_bytes]] = True
        return chosen

    def rows_of(self, chosen: np.ndarray) -> np.ndarray:
        """The numbers of the rows that hold a part of one of the chosen documents."""
        first = (self.ends - self.tokens)[chosen] // self.seq_len
        last = (self.ends[chosen] - 1) // self.seq_len
        return np.unique(np.concatenate([*map(np.arange, first, last + 1)]))


class DocumentRows:
    """The rows of some documents; the rest of a row is padding, segment 0."""

    def __init__(self, rows: RowSource, documents: Documents, chosen: np.ndarray):
        """Takes all rows of the split, and which documents are meant."""
        self._rows, self._documents = rows, documents
        self._chosen = np.append(chosen, False)
        self.numbers = documents.rows_of(chosen)

    def __len__(self) -> int:
        """How many."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One of them."""
        number = int(self.numbers[index])
        row, kept = self._rows[number], self._chosen[self._documents.at([number])[0]]
        return {**row, "segments": np.where(kept, row["segments"], 0)}
