"""Says in messages which columns a table has, and why one may not be found."""

from collections.abc import Iterable, Sequence

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}


def shown_columns(names: Iterable[str]) -> str:
    """The names of columns, those in quotes that could be misread: with spaces around, or empty."""
    return ", ".join(
        name if name == name.strip() and name.isprintable() and name else repr(name)
        for name in names
    )


def separator_hint(names: Sequence[str]) -> str:
    """A sentence where one column's name, or cell, looks like several; "" where it does not."""
    if len(names) == 1:
        for mark, said in _SEPARATORS.items():
            if mark in names[0]:
                return (
                    f"columns seem to be parted by {said}: write commas in a .csv and tabs in a "
                    ".tsv"
                )
    return ""


def no_column(place: str, name: str, names: Sequence[str], remedy: str) -> str:
    """The message for a column that a record lacks."""
    alike = [each for each in names if each.strip().lower() == name.strip().lower()]
    hint = f"the name is {alike[0]!r} there" if alike else separator_hint(names)
    hint = f"; {hint}" if hint else ""
    return f"{place} has no column {name!r}, only {shown_columns(names)}{hint}; {remedy}"
