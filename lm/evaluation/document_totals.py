"""Sums the likelihood of held-out text by document, for intervals that count documents too."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from lm.data.documents import Documents
from lm.data.files import write_json

FILE = "documents.json"
MOST = 200  # groups of documents that are written


class DocumentTotals:
    """The nats and bytes of each of at most 200 groups of documents.

    A group is one document where there are so few, and otherwise every 200th of a random order.
    """

    def __init__(self, documents: Documents, chosen: np.ndarray | None = None):
        """Starts with sums of zero; `chosen` [D] says which documents are read, None: all."""
        self._documents, number = documents, len(documents.tokens)
        self._groups = np.full(number + 1, MOST)  # of padding: none
        self._groups[documents.order()] = np.arange(number) % MOST
        # A document whose end is cut off counts the bytes of its tokens on average.
        share = documents.bytes / documents.tokens
        self._bytes = np.append(share if chosen is None else share * chosen, 0.0)
        self._sums = np.zeros((2, MOST + 1))

    def add(self, rows: Sequence[int], token_nats: np.ndarray) -> None:
        """Adds the nats [len(rows), L] of the targets of rows, by their numbers."""
        found = self._documents.at(rows)
        for sums, weights in zip(self._sums, (token_nats, self._bytes[found]), strict=True):
            sums += np.bincount(self._groups[found].ravel(), weights.ravel(), MOST + 1)

    def write(self, folder: epath.Path) -> dict[str, Any]:
        """Writes documents.json: {"nats": [G], "bytes": [G]}; adds no metric."""
        nats, sizes = self._sums[:, :MOST]
        seen = sizes > 0
        columns = {"nats": nats[seen], "bytes": sizes[seen]}
        write_json(folder / FILE, {k: np.round(v, 3).tolist() for k, v in columns.items()})
        return {}
