"""Checks that a name is one of those that there are, and suggests one that is near."""

import difflib
import re
from collections.abc import Iterable

from lm.errors import UserError

# Below this share of letters in common, a suggestion would be a guess.
_NEAR = 0.7


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that there is not: "; did you mean ...?", or nothing.

    Dotted names and paths are near where each part is, so that a long group in common makes no key
    near; a key that stands in a single other group is meant as well.
    """
    names = list(names)
    likeness = {each: _likeness(name, each) for each in names}
    best = max(names, key=lambda each: likeness[each], default="")
    if best and likeness[best] >= _NEAR:
        return f"; did you mean {best}?"
    group, _, key = name.rpartition(".")
    elsewhere = [each for each in names if group and each.rpartition(".")[2] == key]
    return f"; did you mean {elsewhere[0]}?" if len(elsewhere) == 1 else ""


def _likeness(name: str, other: str) -> float:
    """Of the two names' parts that are least alike: 0, nothing in common, to 1, the same."""
    parts, others = (re.split(r"[./]", each.lower()) for each in (name, other))
    if len(parts) != len(others):
        return 0.0
    pairs = zip(parts, others, strict=True)
    return min(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)


def one_of(key: str, value: str, names: Iterable[str]) -> None:
    """Raises UserError, with the nearest name, where the value of a knob is none of the names."""
    if value not in names:
        hint = nearest(str(value), names)
        raise UserError(f"config.{key} = {value!r} is not one of {', '.join(names)}{hint}")
