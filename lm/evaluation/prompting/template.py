"""Formats an example with a template of column names in braces and {answer}, such as
"Review: {text} Sentiment: {answer}".
"""

import dataclasses
import string
from collections.abc import Callable
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.tasks.records import Record, no_column

ANSWER = "answer"


class Query(NamedTuple):
    """A text in which the answer is scored."""

    before: str
    answer: str
    after: str = ""

    @property
    def text(self) -> str:
        """The whole text."""
        return self.before + self.answer + self.after


@dataclasses.dataclass(frozen=True)
class Template:
    """A template cut at {answer}.

    Attributes:
      before, after: pieces in order, each a text and the column after it, or None.
    """

    before: tuple[tuple[str, str | None], ...]
    after: tuple[tuple[str, str | None], ...]

    def fill(self, record: Record, answer: str) -> Query:
        """Formats the record with an answer; UserError where it lacks a column."""
        for _, column in self.before + self.after:
            if column is not None and column not in record.values:
                remedy = "change config.prompt.template"
                raise UserError(no_column(record.place, column, [*record.values], remedy))
        return self._filled(answer, lambda column: str(record.values[column]))

    def empty(self, content: str, answer: str) -> Query:
        """Formats an answer with the same content in every column, such as "N/A"."""
        return self._filled(answer, lambda _: content)

    def _filled(self, answer: str, value: Callable[[str], str]) -> Query:
        def text(pieces: tuple[tuple[str, str | None], ...]) -> str:
            return "".join(text + (value(column) if column else "") for text, column in pieces)

        return Query(text(self.before), answer, text(self.after))


def parse(text: str) -> Template:
    """Parses a template; "{{" and "}}" are literal braces.

    Raises:
      UserError: it has no {answer} or several, or braces that hold no column's name.
    """
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError:
        parsed = []
    pieces = [(literal, name) for literal, name, _, _ in parsed]
    names: list[Any] = [name for _, name in pieces]
    plain = all(name != "" and not form and not how for _, name, form, how in parsed)
    if not plain or names.count(ANSWER) != 1:
        raise UserError(
            f"config.prompt.template = {text!r} must hold {{answer}} once, and may hold names of "
            "columns in braces, such as {text}; write {{ and }} for braces themselves"
        )
    place = names.index(ANSWER)
    before = (*pieces[:place], (pieces[place][0], None))
    return Template(before, tuple(pieces[place + 1 :]))
