"""Makes rows of an ablation from a grid of values that the command line names (--vary)."""

import ast
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lm.config import Declared, declared
from lm.errors import UserError, nearest

Row = Mapping[str, Any]

_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a tuple such as (a,b)",
}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def vary_rows(rows: Sequence[Row], varied: Sequence[str]) -> list[Row]:
    """Every row with every combination of the values of --vary, the first key slowest.

    Args:
      rows: of a config's sweep(), or a single empty one.
      varied: texts KEY=VALUE,VALUE,..., each of another key.

    Raises:
      UserError: a key is unknown, given twice or set by a row, or a value of another type.
    """
    grid = named_values(varied, "vary")
    check_unset(rows, grid, "vary")
    combinations = [
        dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values())
    ]
    return [{**row, **combination} for row in rows for combination in combinations]


def named_values(texts: Sequence[str], flag: str) -> dict[str, list[Any]]:
    """The values that the texts KEY=VALUE,VALUE,... of a flag name for each key.

    Raises:
      UserError: a key is unknown or given twice, or a value of another type or named twice.
    """
    return {key: _values(key, text, flag) for key, text in per_key(texts, flag)}


def per_key(texts: Sequence[str], flag: str) -> Iterator[tuple[str, str]]:
    """The keys in the texts KEY=... of a flag, and what they say of them.

    Raises:
      UserError: a key is unknown or given twice, or its text says nothing.
    """
    seen: set[str] = set()
    for text in texts:
        key, equals, value = text.partition("=")
        what = f"--{flag}={text}"
        if not equals or not value:
            form = "KEY=LOW:HIGH" if flag == "draw" else "KEY=A,B"
            raise UserError(f"{what} is not of the form --{flag}={form}")
        if key == "seed":
            raise UserError(f"{what}: use --seeds=N, or SEEDS in the config's file")
        if key not in declared():
            hint = nearest(key.removeprefix("config."), declared())
            raise UserError(f"{what}: {key} is no config key{hint}")
        if key in seen:
            raise UserError(f"{what}: {key} is given twice; name all its values at once")
        seen.add(key)
        yield key, value


def check_unset(rows: Sequence[Row], keys: Iterable[str], flag: str) -> None:
    """Raises UserError where a row sets one of the keys of a flag."""
    for key in keys:
        if any(key in row for row in rows):
            raise UserError(f"--{flag}={key}=...: the ablation varies {key} already; leave it out")


def _values(key: str, text: str, flag: str) -> list[Any]:
    what = f"--{flag}={key}={text}"
    values = [parse_value(key, part, what) for part in split(text, what)]
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{what} names {value} twice; name each value once")
    return values


def split(text: str, what: str) -> list[str]:
    """The parts between commas, but for those in parentheses, brackets, braces or quotes.

    Raises:
      UserError: one of these is not closed, or a part is empty.
    """
    parts, closing, quote = [""], [], ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _CLOSING:
            closing.append(_CLOSING[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            parts.append("")
            continue
        parts[-1] += letter
    if quote or closing:
        raise UserError(f"{what}: {(quote or closing[-1])!r} is missing at its end")
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise UserError(f"{what}: a value is empty; write '' for an empty text")
    return parts


def parse_value(key: str, text: str, what: str) -> Any:
    """The value of a config key that a text of the command line stands for, by the key's type.

    Texts need quotes only where they hold commas, or are 'None' and the key may be None. Tuples
    are (a,b) or [a,b], and () is the empty one. `what` begins the message of an error.
    """
    each = declared()[key]
    if text == "None" and each.optional:
        return None
    value = _parsed(each, text)
    if value is None:
        none = " or None" if each.optional else ""
        raise UserError(f"{what}: {text} must be {_NAMES[each.kind]}{none}")
    return value


def _parsed(each: Declared, text: str) -> Any:
    """The value; None where the text is of another type."""
    if each.kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    if each.kind is tuple:
        return _tuple(text)
    if each.kind is str:
        return text[1:-1] if re.fullmatch(r"'[^']*'|\"[^\"]*\"", text) else text
    return parse_number(each.kind, text)


def parse_number(kind: type, text: str) -> Any:
    """The finite number of a kind, int or float, that a text stands for; None where it does not.
    1e3 is a whole number too.
    """
    try:
        value = float(text)
        whole = int(text) if re.fullmatch(r"[+-]?\d+", text) else int(value)
    except (ValueError, OverflowError):
        return None
    if kind is float:
        return value if math.isfinite(value) else None
    return whole if whole == value else None


def _tuple(text: str) -> tuple[Any, ...] | None:
    if not (text[0] in "([" and text[-1] == _CLOSING[text[0]]):
        return None
    inside = text[1:-1].strip().removesuffix(",")
    return tuple(_member(part) for part in split(inside, text)) if inside else ()


def _member(text: str) -> Any:
    """A number, None, a tuple or a text, as Python writes it or without its quotes."""
    if text[0] in "([" and (found := _tuple(text)) is not None:
        return found
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
