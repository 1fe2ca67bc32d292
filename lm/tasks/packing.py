"""Packs examples of one row each into shared rows of training, in which none sees another."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.tasks.layout import Layout, Row

_SHORTEST = 8  # tokens of a text, in the mean, for which a row has places


def most_texts(length: int) -> int:
    """How many texts with one target each share a row at most."""
    return max(length // _SHORTEST, 1)


def share_rows(rows: Iterable[Row], layout: Layout) -> Iterator[Row]:
    """Rows of several texts, in their order, as many as fit.

    A row has "inputs", "segments" and "types" [L], and "target_positions", "targets" and "weights"
    [T], of which those that count come first. Texts are numbered from 1 in `segments`, and do not
    see each other.
    """
    waiting: list[Row] = []
    used = targets = 0
    for row in rows:
        size, counted = _size(row), _counted(row)
        full = used + size > layout.length or targets + counted > len(row["targets"])
        if waiting and full:
            yield _shared(waiting, layout)
            waiting, used, targets = [], 0, 0
        waiting.append(row)
        used += size
        targets += counted
    if waiting:
        yield _shared(waiting, layout)


def _size(row: Row) -> int:
    return int(np.sum(row["segments"] > 0))


def _counted(row: Row) -> int:
    return int(np.sum(row["weights"] > 0))


def _shared(rows: Sequence[Row], layout: Layout) -> Row:
    merged = {name: np.zeros_like(array) for name, array in rows[0].items()}
    merged["inputs"] = np.full_like(rows[0]["inputs"], layout.end)
    used = targets = 0
    for number, row in enumerate(rows, start=1):
        size, counted = _size(row), _counted(row)
        for name in ("inputs", "types"):
            merged[name][used : used + size] = row[name][:size]
        merged["segments"][used : used + size] = number
        merged["target_positions"][targets : targets + counted] = (
            row["target_positions"][:counted] + used
        )
        for name in ("targets", "weights"):
            merged[name][targets : targets + counted] = row[name][:counted]
        used += size
        targets += counted
    return merged
