"""Reads labels: which cells name the same class, which name none, and the order of classes."""

import decimal
import math
import re
import unicodedata
from collections.abc import Iterable

_WHOLE_NUMBER = re.compile(r"([+-]?[0-9]+)\.0*")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
NO_VALUE = ("nan", "NaN", "<NA>", "NaT")  # what pandas writes into an empty cell


def is_missing(value: object) -> bool:
    """Whether a cell holds no label: None, NaN, or nothing but white space."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def class_name(value: object) -> str:
    """The class that a cell names, the same for all ways to write it.

    White space around it does not count, a number is written without a fraction of zeros (1.0 and
    "1.0" are "1"), truth values in small letters (True, "TRUE" are "true"), and letters with their
    accents as one character (NFC). All else counts, also case: "US" is not "us".
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = unicodedata.normalize("NFC", str(value).strip())
    if text.lower() in ("true", "false"):
        return text.lower()
    number = _WHOLE_NUMBER.fullmatch(text)
    return number[1] if number else text


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct classes in alphabetical order, by size where all of them are numbers."""
    found = sorted(set(names))
    numeric = all(_NUMBER.fullmatch(name) for name in found)
    return tuple(sorted(found, key=decimal.Decimal) if numeric else found)


def truth_and_numbers(names: Iterable[str]) -> tuple[str, str] | None:
    """A truth value and a 0 or 1 that stand among the same classes; None where one kind is absent.

    Some tools write one column both ways, and nothing tells whether "true" and "1" are one class.
    """
    found = set(names)
    truth, numbers = sorted(found & {"true", "false"}), sorted(found & {"0", "1"})
    return (truth[0], numbers[0]) if truth and numbers else None


def same_but_for_case(names: Iterable[str]) -> tuple[str, str] | None:
    """Two classes that differ in case alone, such as "Pos" and "pos"; None where there are none."""
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        if (other := seen.setdefault(name.casefold(), name)) != name:
            return other, name
    return None
