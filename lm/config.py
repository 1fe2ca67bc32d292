"""Loads config files, checks the types of their values, and overrides them."""

import contextlib
import dataclasses
import functools
import glob
import importlib.util
import json
import operator
import os
import traceback
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard, TypeVar, get_args, get_type_hints

from etils import epath
from ml_collections import ConfigDict

from configs import default
from lm.errors import UserError, nearest, one_of

Config = ConfigDict

T = TypeVar("T")

# Of float32: what is smaller may be 0 there, and divide 0 by 0; what is nearer to 1 may be 1.
SMALLEST, BELOW_ONE = 1e-30, 1 - 2**-24

# Where prepared text and compiled programs are, unless the user says otherwise. No file of a
# workdir does: compiled programs are native code.
CACHE = "~/.cache/softmax-laboratory"


def load(path: str) -> types.ModuleType:
    """A config's file as a module.

    Raises:
      UserError: where there is none, or running it raises anything; names the line.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no config {path}{nearest(path, glob.glob('configs/*.py'))}")
    if not path.endswith(".py"):
        raise UserError(f"{path} is no Python file; a config is a .py file with get_config(arg)")
    spec: Any = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    with reading(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns whatever the code of a config file raises, or its exit, into one UserError.

    The message names the line of the file. A ValueError is the file's own word on what it was
    asked, such as an argument that it has not, and is passed on as it is.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise UserError(
            f"{error.filename or path} line {error.lineno}: {type(error).__name__}: {error.msg}"
        ) from None
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if os.path.abspath(f.filename) == os.path.abspath(path)]
        where = f"{path} line {lines[-1]}" if lines else path
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{plain(error)}") from None


def defaults(name: str) -> dict[str, Any]:
    """The flat dotted settings of a config FILE[:ARG] as its file has them.

    Raises:
      UserError: where there is no such file or argument, or it returns no config.
    """
    path, _, arg = name.partition(":")
    module = load(path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path} has no get_config(arg) that returns a ConfigDict")
    with reading(path):
        config = module.get_config(arg or None)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config(arg) returns {config!r}, which is no ConfigDict")
    return flatten(config.to_dict())


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain dictionaries, as config.json holds it."""
    return json.loads(json.dumps(config.to_dict()))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy with dotted keys set; unknown keys and wrong types raise UserError."""
    config = config.copy_and_resolve_references().lock()
    names = flatten(config.to_dict()).keys() if overrides else ()
    for key, value in overrides.items():
        if key not in names:
            raise UserError(
                f"sweep() sets config.{key}, which is no config key{nearest(key, names)}"
            )
        try:
            config.update_from_flattened_dict({key: value})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"sweep() sets config.{key} = {value!r}: {plain(error)}") from None
    return config


def plain(error: BaseException) -> str:
    """The message of an exception in one line."""
    message = error if isinstance(error, OSError) or not error.args else error.args[0]
    return " ".join(str(message).split())


def cache_folder(config: Config, name: str) -> epath.Path:
    """The folder of this name in a config's cache.

    Raises:
      UserError: config.cache_dir names none, as "" would be the folder that the command was started
        in; or one in a bucket, whose files no process can map into its memory.
    """
    if "://" in str(config.cache_dir):
        raise UserError(
            f"config.cache_dir = {config.cache_dir!r} is in a bucket; use a folder on a local disk "
            "or a file system that machines share"
        )
    if not str(config.cache_dir).strip():
        raise UserError(
            f"config.cache_dir = {config.cache_dir!r} names no folder; give one, or leave it out"
        )
    return epath.Path(config.cache_dir).expanduser() / name


def chosen_options(group: Config, fixed: Iterable[str]) -> dict[str, Any]:
    """The options of a group that are set, without its `fixed` keys."""
    return {key: value for key, value in group.items() if key not in fixed and value is not None}


# What the members of a tuple are, if not texts; other checks look at those of several types.
_MEMBERS = {"output.class_weights": float, "output.cutoffs": int}
_OF_SEVERAL_TYPES = ("special_tokens", "anneal")  # last parts of keys
_KINDS = {str: "text", int: "whole number", float: "number", bool: "truth value", tuple: "tuple"}
# Steps, sizes and seeds are 32-bit integers on devices; other numbers are float32.
_LARGEST, _LARGEST_FLOAT = 2**31 - 1, 3.4e38


class Declared(NamedTuple):
    """What configs/default.py says of a key: the type of its values, and whether None is one."""

    kind: type
    optional: bool


@functools.cache
def declared() -> Mapping[str, Declared]:
    """Every dotted key."""
    found: dict[str, Declared] = {}

    def read(group: Config, prefix: str) -> None:
        for key, value in group.items():
            if isinstance(value, ConfigDict):
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
        member_kind = _MEMBERS.get(key, str)
        plain_tuple = each.kind is tuple and key.split(".")[-1] not in _OF_SEVERAL_TYPES
        if plain_tuple and not all(_is(member, member_kind) for member in value or ()):
            raise UserError(f"{what}: must be a tuple of {_KINDS[member_kind]}s")
        for number in _numbers(value):
            if isinstance(number, float) and not abs(number) <= _LARGEST_FLOAT:
                raise UserError(f"{what}: must be finite, in float32")
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise UserError(f"{what}: must be at most {_LARGEST} in size")


def _value(config: Config | Mapping[str, Any], key: str) -> Any:
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


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key and the bounds of its values; None is within them where the key may be None.

    In the annotation of a field, as in `Annotated[int, Key("model.d_model", at_least=1)]`, it says
    which key the field holds.

    Attributes:
      name: dotted, such as "model.d_model".
      at_least, above, at_most, below: limits of numbers; above 0 is above what float32 may take
        for 0.
      one_of: the names to choose from; (): any.
    """

    name: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: Iterable[str] = ()

    def check(self, config: Config | Mapping[str, Any]) -> None:
        """Raises UserError where the config's value is out of bounds."""
        value = _value(config, self.name)
        if value is None:
            return
        if self.one_of:
            return one_of(self.name, value, self.one_of)
        limits = [
            ("at least", self.at_least, operator.ge),
            ("above", self.above, operator.gt),
            ("at most", self.at_most, operator.le),
            ("below", self.below, operator.lt),
        ]
        given = [(words, limit, holds) for words, limit, holds in limits if limit is not None]
        smallest = given and (SMALLEST if self.above == 0 else value)
        if given and not (value >= smallest and all(holds(value, x) for _, x, holds in given)):
            text = [f"{words} {limit}" for words, limit, _ in given]
            text[0] += f", at least {SMALLEST}" if self.above == 0 else ""
            raise UserError(f"config.{self.name} = {value}: must be {' and '.join(text)}")


def keys(group: str, names: str, **bounds: Any) -> list[Key]:
    """Keys of one group, whose names are separated by spaces, that have the same bounds."""
    return [Key(f"{group}.{name}", **bounds) for name in names.split()]


def keys_of(kind: type) -> dict[str, Key]:
    """The config keys that the fields of a typed config hold, by the field's name."""
    hints = get_type_hints(kind, include_extras=True).items()
    notes = {name: getattr(hint, "__metadata__", ()) for name, hint in hints}
    return {name: note for name, (note, *_) in ((n, m) for n, m in notes.items() if m)}


def keys_within(kind: type) -> list[Key]:
    """The config keys of a typed config and of the typed configs in its fields."""
    found = list(keys_of(kind).values())
    for hint in dict.fromkeys(get_type_hints(kind).values()):
        for part in (hint, *get_args(hint)):
            found += keys_within(part) if _is_typed(part) else ()
    return found


def typed(kind: type[T], config: Config | Mapping[str, Any], **derived: Any) -> T:
    """A frozen dataclass from a config or some of its groups: the values of the keys of its fields,
    what is derived, and for every other field whose type is such a dataclass, that one likewise.
    """
    values = {k: frozen(_value(config, v.name)) for k, v in keys_of(kind).items()}
    for name, part in get_type_hints(kind).items():
        if name not in (*values, *derived) and _is_typed(part):
            values[name] = typed(part, config)
    return kind(**(values | derived))


def replace_within(config: T, **changes: Any) -> T:
    """A typed config with new values of fields, in itself and in every one within that has them."""
    values = {name: changes.get(name, value) for name, value in vars(config).items()}
    within = {k: replace_within(v, **changes) for k, v in values.items() if _is_typed(type(v))}
    return type(config)(**(values | within))


def _is_typed(hint: object) -> TypeGuard[type]:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def frozen(value: Any) -> Any:
    """Tuples for lists, which a config that was read from JSON has."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def _is(value: object, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, tuple | list)
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)


def _numbers(value: object) -> list[Any]:
    """The numbers in a value, however deep in lists."""
    if isinstance(value, tuple | list):
        return [number for member in value for number in _numbers(member)]
    return [value] if isinstance(value, int | float) else []


def _short(value: object, most: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
