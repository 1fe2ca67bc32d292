"""Cuts a file's text into lines, at line ends alone."""

import re
from collections.abc import Iterator

# str.splitlines also cuts at U+2028, form feeds and others, which stand inside of texts and JSON.
_END = re.compile(r"\r\n|\n|\r")


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text and their numbers from 1, without what ends them: CR LF, LF or CR."""
    return enumerate(_END.split(text), start=1)
