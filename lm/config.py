"""Loads config files, checks the types of their values, hashes and overrides them."""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import importlib.util
import json
import os
import traceback
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from configs import default
from lm.errors import UserError, nearest

# A ConfigDict, whose attributes have no types that a checker could know.
Config = Any

# What may differ between a run and its resumption: where it runs, what it prints, and what it is
# asked when it is trained.
_INCIDENTAL = ("mesh", "checkpoint", "log", "cache_dir", "prompt")


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


def identity(config: Config) -> dict[str, Any]:
    """The flat dotted settings that can change a run's numbers."""
    flat = flatten(to_dict(config))
    # Without a task, what examples look like only matters to prompts.
    incidental = _INCIDENTAL if flat.get("task.name") else (*_INCIDENTAL, "task")
    return {key: value for key, value in flat.items() if key.split(".")[0] not in incidental}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def content_hash(config: Config) -> str:
    """Twelve hexadecimal digits that name the settings which can change a run's numbers."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy with dotted keys set; unknown keys and wrong types raise UserError."""
    config = config.copy_and_resolve_references().lock()
    names = flatten(config.to_dict()).keys() if overrides else ()
    for key, value in overrides.items():
        if key not in names:
            raise UserError(f"sweep() sets config.{key}, which is no knob{nearest(key, names)}")
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
      UserError: config.cache_dir names none; "" would be the folder that the command was started
        in.
    """
    if not str(config.cache_dir).strip():
        raise UserError(
            f"config.cache_dir = {config.cache_dir!r} names no folder; give one, or leave it out"
        )
    return epath.Path(config.cache_dir).expanduser() / name


def chosen_options(group: Config, fixed: Iterable[str]) -> dict[str, Any]:
    """The options of a group that are set, without its `fixed` knobs."""
    return {key: value for key, value in group.items() if key not in fixed and value is not None}


def attention_groups(config: Config) -> dict[str, Config]:
    """The knobs of each kind of attention that the model has, by the name of their group.

    What `encoder_attention` and `cross_attention` leave at None is as in `attention`. Where they
    name another mechanism or weighting, no option is: options belong to what they were set for.
    """
    groups = {"attention": config.attention}
    if config.model.architecture == "encoder_decoder":
        for name in ("encoder_attention", "cross_attention"):
            own = chosen_options(config[name], ())
            group = config.attention.copy_and_resolve_references().unlock()
            parts = ("mechanism", "weighting")
            if any(own.get(part, group[part]) != group[part] for part in parts):
                for key in group:
                    if key not in (*parts, "query_chunk_size"):
                        group[key] = () if key in ("learn", "anneal") else None
            group.update(own)
            groups[name] = group
    return groups


# What the members of a tuple are, where no other check looks at them.
_MEMBERS = {
    "attention.learn": str,
    "continual.sources": str,
    "cross_attention.learn": str,
    "encoder_attention.learn": str,
    "output.class_weights": float,
    "output.cutoffs": int,
    "prompt.content_free": str,
    "prompt.verbalizers": str,
    "task.choices": str,
    "task.columns": str,
    "task.labels": str,
    "task.text": str,
    "finetuning.target_modules": str,
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
