"""Checks that the values of a config have the types that configs/default.py declares, and that its
numbers are finite.
"""

import dataclasses
import functools
from collections.abc import Container, Mapping
from typing import Any

from configs import default
from lm.config import Config
from lm.errors import UserError

# What the members of a tuple are, where no other check looks at them.
_MEMBERS = {
    "attention.learn": str,
    "continual.sources": str,
    "cross_attention.learn": str,
    "encoder_attention.learn": str,
    "output.class_weights": float,
    "output.cutoffs": int,
    "prompt.content_free": str,
    "prompt.words": str,
    "task.choices": str,
    "task.columns": str,
    "task.labels": str,
    "task.text": str,
    "tune.targets": str,
}
_KINDS = {str: "text", int: "whole number", float: "number", bool: "truth value", tuple: "tuple"}
# Steps, sizes and seeds are 32-bit integers on devices; other numbers are float32.
_LARGEST, _LARGEST_FLOAT = 2**31 - 1, 3.4e38


@dataclasses.dataclass(frozen=True)
class Declared:
    """What configs/default.py says of a key.

    Attributes:
      kind: the type of its values.
      optional: whether None is one of them.
    """

    kind: type
    optional: bool


@functools.cache
def declared() -> Mapping[str, Declared]:
    """Every dotted key."""
    found: dict[str, Declared] = {}

    def read(group: Config, prefix: str) -> None:
        for key, value in group.items():
            if isinstance(value, Mapping) or hasattr(value, "to_dict"):
                read(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = Declared(group.get_type(key), value is None)

    read(default.get_config(), "")
    return found


def check_types(config: Config, besides: Container[str] = ()) -> None:
    """Raises UserError for the first value of another type, or number that is not finite.

    A config that was read from JSON has lists for tuples, and no types of its own. Keys `besides`
    are not looked at.
    """
    for key, each in declared().items():
        if key in besides:
            continue
        value = _value(config, key)
        if value is None and each.optional:
            continue
        what = f"config.{key} = {_short(value)}"
        if not _is(value, each.kind):
            none = " or None" if each.optional else ""
            raise UserError(f"{what}: must be a {_KINDS[each.kind]}{none}")
        if key in _MEMBERS and not all(_is(member, _MEMBERS[key]) for member in value or ()):
            raise UserError(f"{what}: must be a tuple of {_KINDS[_MEMBERS[key]]}s")
        for number in _numbers(value):
            if isinstance(number, float) and not abs(number) <= _LARGEST_FLOAT:
                raise UserError(f"{what}: must be finite, in float32")
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise UserError(f"{what}: must be at most {_LARGEST} in size")


def _value(config: Config, key: str) -> Any:
    """The value of a dotted key; raises UserError where the config lacks it."""
    value: Any = config
    for part in key.split("."):
        try:
            value = value[part]
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"config.{key} is missing; start from the config of configs/default.py, which has "
                "every key"
            ) from None
    return value


def _is(value: Any, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, tuple | list)
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)


def _numbers(value: Any) -> list[Any]:
    """The numbers in a value, however deep in lists."""
    if isinstance(value, tuple | list):
        return [number for member in value for number in _numbers(member)]
    return [value] if isinstance(value, int | float) else []


def _short(value: Any, most: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
