"""Shortens the labels of rows for figures."""

import itertools
import re
from collections.abc import Sequence

_PIECE = re.compile(r"[^,=/]*[,=/]|[^,=/]+$")  # what ends with a separator, or at the end
_LONGEST = 60


def shorten(labels: Sequence[str]) -> dict[str, str]:
    """The labels without the pieces that all of them begin or end with: of "weighting=softmax" and
    "weighting=sigmoid" only "softmax" and "sigmoid". Pieces end at "=", "," and "/". Of what is
    longer than 60 characters, the middle is left out.

    Labels that would be alike or empty then stay whole.
    """
    pieces = [_PIECE.findall(label) for label in labels]
    if len(labels) < 2 or not all(pieces):
        return {label: _clip(label) for label in labels}
    start = _alike(pieces)
    start = min(start, *(len(each) - 1 for each in pieces))
    # A piece with its separator in front ends a label: ",qk_norm=True".
    tails = [re.findall(r",[^,]*", "".join(each[start:])) for each in pieces]
    end = _alike([each[::-1] for each in tails])
    found = {}
    for label, own, tail in zip(labels, pieces, tails, strict=True):
        rest = "".join(own[start:])
        found[label] = rest[: len(rest) - sum(map(len, tail[len(tail) - end :]))]
    if len(set(found.values())) < len(set(labels)) or not all(found.values()):
        found = {label: label for label in labels}
    return {label: _clip(short) for label, short in found.items()}


def common_part(labels: Sequence[str]) -> str:
    """What `shorten` leaves out at the front: "weighting"; empty where it leaves out nothing."""
    first, short = labels[0], shorten(labels)[labels[0]]
    return first[: first.find(short)].rstrip("=,/") if short in first else ""


def _alike(lists: Sequence[Sequence[str]]) -> int:
    """How many of their first items all have in common."""
    columns = zip(*lists, strict=False)
    return len(list(itertools.takewhile(lambda each: len(set(each)) == 1, columns)))


def _clip(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:34]}...{text[-23:]}"
