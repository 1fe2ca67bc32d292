"""Is this name one of those that there are? Where it is not, the nearest is suggested."""

import difflib
from collections.abc import Iterable

from lm.errors import UserError


def one_of(key: str, value: str, names: Iterable[str]) -> None:
    """Raises UserError, with the nearest name, where the value of a knob is none of the names."""
    if value not in names:
        close = difflib.get_close_matches(str(value), list(names), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"config.{key} = {value!r} is not one of {', '.join(names)}{hint}")
