"""Packs examples of one row each into shared rows of training, in which none sees another."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

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

    def fits(used: np.ndarray, row: Row) -> bool:
        return bool(np.all(used <= (layout.length, len(row["targets"]))))

    groups = _groups(rows, lambda _, row: np.array([_size(row), _counted(row)]), fits)
    return (_shared(group, layout) for group in groups)


def pack(rows: Iterable[Row], layout: Layout) -> Iterator[Row]:
    """Rows of one document each, several to a row, in their order, as long as they fit.

    A row has "tokens" [L + 1], "segments" [L] and "weights" [L]; documents are numbered from 1 in
    `segments`, do not see each other, and the first input of each is the token that opens it. A
    document's last token counts as it does alone.
    """

    def cost(before: Row | None, row: Row) -> int:
        return _size(row) + (_kept(before, row) if before else 0)

    groups = _groups(rows, cost, lambda used, _: used <= layout.length)
    return (_merged(group, layout) for group in groups)


def _groups(
    rows: Iterable[Row], cost: Callable[[Row | None, Row], Any], fits: Callable[[Any, Row], bool]
) -> Iterator[list[Row]]:
    """Consecutive rows whose costs, behind the row before them, add up to what fits."""
    group: list[Row] = []
    used: Any = 0
    for row in rows:
        total = used + cost(group[-1], row) if group else cost(None, row)
        if group and not fits(total, row):
            yield group
            group, total = [], cost(None, row)
        group.append(row)
        used = total
    if group:
        yield group


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
        texts, places = slice(used, used + size), slice(targets, targets + counted)
        for name in ("inputs", "types"):
            merged[name][texts] = row[name][:size]
        merged["segments"][texts] = number
        merged["target_positions"][places] = row["target_positions"][:counted] + used
        for name in ("targets", "weights"):
            merged[name][places] = row[name][:counted]
        used += size
        targets += counted
    return merged


def _kept(row: Row, following: Row) -> int:
    """1 where a document's last token counts, and is not the one that opens the next document."""
    size = _size(row)
    same = row["tokens"][size] == following["tokens"][0]
    return int(row["weights"][size - 1] > 0 and not same)


def _merged(rows: Sequence[Row], layout: Layout) -> Row:
    kept = [_kept(*pair) for pair in itertools.pairwise(rows)] + [1]
    sizes = [_size(row) + more for row, more in zip(rows, kept, strict=True)]
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
