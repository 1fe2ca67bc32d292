"""Reads CoNLL columns, one word a line, and CoNLL-U."""

import collections
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lm.data.files import lines_of
from lm.errors import UserError

Sentence = tuple[int, dict[str, Any]]  # the number of its first line, and its columns
_Line = tuple[int, list[str]]  # its number and its cells
_SAYS = re.compile(r"#\s*(newdoc\b|newpar\b|[\w.:-]+\s*=\s)")  # a comment of CoNLL-U
_DOCUMENT = "-DOCSTART-"  # opens a line that is no word
# Columns of CoNLL-U by their places (Nivre et al. 2020); tags are the universal parts of speech.
_UNIVERSAL = {"tokens": 1, "tags": 3, "lemmas": 2, "upos": 3, "xpos": 4, "deprel": 7}
_UNIVERSAL_WIDTH = 10
_WORD, _OTHER = re.compile("[0-9]+"), re.compile(r"[0-9]+[-.][0-9]+")


def conll(text: str, columns: tuple[str, ...], name: str) -> Iterator[Sentence]:
    """Sentences of a word a line, the word in the first column and its tag in the last; of a file
    with one column, the words alone.

    Columns are parted by tabs, or where a line has none, by spaces; any other white space is part
    of a word. Blank lines and -DOCSTART- end sentences. A line that opens with # is a comment where
    it says "# name = value" or has not as many columns as the others have; else # is a word.

    Raises:
      UserError: a word has no tag, or the file looks like CoNLL-U.
    """
    del columns
    lines = [(number, _cells(line)) for number, line in lines_of(text)]
    sizes = collections.Counter(len(cells) for _, cells in lines if cells and cells[0][0] != "#")
    width = sizes.most_common(1)[0][0] if sizes else 0
    kept = [(n, cells) for n, cells in lines if not _is_comment(cells, width)]
    words = [cells for _, cells in kept if cells]
    tagged = any(len(cells) > 1 for cells in words)
    if width == _UNIVERSAL_WIDTH and all(cells[0][:1].isdecimal() for cells in words):
        raise UserError(
            f"{name} looks like CoNLL-U, whose words are in its second column; set "
            "config.task.format='conllu'"
        )
    for begin, rows in _sentences(kept):
        for number, cells in rows:
            if len(cells) < 2 and tagged:
                raise UserError(f"{name} line {number} has a word without a tag: {cells[0][:40]!r}")
        tags = {"tags": [cells[-1] for _, cells in rows]} if tagged else {}
        yield begin, {"tokens": [cells[0] for _, cells in rows], **tags}


def conllu(text: str, columns: tuple[str, ...], name: str) -> Iterator[Sentence]:
    """Sentences of CoNLL-U: its words as "tokens", universal parts of speech as "tags" and "upos",
    and "xpos", "lemmas" and "deprel". Ranges of several words (1-2) and empty nodes (8.1) are left
    out.

    Raises:
      UserError: a line has not ten columns, or no number in the first.
    """
    del columns
    lines = [(n, _cells(line) if line[:1] != "#" else None) for n, line in lines_of(text)]
    for begin, rows in _sentences([(n, cells) for n, cells in lines if cells is not None]):
        for number, cells in rows:
            if len(cells) != _UNIVERSAL_WIDTH or not (
                _WORD.fullmatch(cells[0]) or _OTHER.fullmatch(cells[0])
            ):
                raise UserError(
                    f"{name} line {number} is no line of CoNLL-U, which has {_UNIVERSAL_WIDTH} "
                    "columns parted by tabs and the word's number in the first; mend it"
                )
        words = [cells for _, cells in rows if _WORD.fullmatch(cells[0])]
        if words:
            yield begin, {key: [c[place] for c in words] for key, place in _UNIVERSAL.items()}


def _cells(line: str) -> list[str]:
    """The columns of a line; [] of a blank one, and of one that opens a document."""
    if not line.strip(" \t") or re.split("[ \t]", line, maxsplit=1)[0] == _DOCUMENT:
        return []
    parts = line.split("\t") if "\t" in line.strip(" \t") else line.split(" ")
    cells = [part.strip(" \t") for part in parts]
    return cells if "\t" in line.strip(" \t") else [cell for cell in cells if cell]


def _is_comment(cells: Sequence[str], width: int) -> bool:
    if not cells or cells[0][:1] != "#":
        return False
    return len(cells) != width or bool(_SAYS.match(" ".join(cells)))


def _sentences(lines: Sequence[_Line]) -> Iterator[tuple[int, list[_Line]]]:
    """Runs of lines that are not empty, each with the number of its first."""
    for filled, run in itertools.groupby(lines, key=lambda line: bool(line[1])):
        if filled:
            rows = list(run)
            yield rows[0][0], rows
