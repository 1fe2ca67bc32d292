"""Is this name one of those that there are? Where it is not, the nearest is suggested."""

import difflib
from collections.abc import Iterable

from lm.errors import UserError


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that there is not: "; did you mean ...?", or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(key: str, value: str, names: Iterable[str]) -> None:
    """Raises UserError, with the nearest name, where the value of a knob is none of the names."""
    if value not in names:
        hint = nearest(str(value), names)
        raise UserError(f"config.{key} = {value!r} is not one of {', '.join(names)}{hint}")
