"""Which experiment is it? A config's file, its data, the hash that names it, and its overrides."""

import contextlib
import glob
import hashlib
import importlib.util
import json
import os
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from lm.check_names import nearest
from lm.errors import UserError

# A ConfigDict, whose attributes have no types that a checker could know.
Config = Any

# What may differ between a run and its resumption: where it runs, what it prints, and what it is
# asked when it is trained.
_INCIDENTAL = ("mesh", "checkpoint", "log", "cache", "prompt")


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
      UserError: config.cache names none; "" would be the folder that the command was started in.
    """
    if not str(config.cache).strip():
        raise UserError(
            f"config.cache = {config.cache!r} names no folder; give one, or leave it out"
        )
    return epath.Path(config.cache).expanduser() / name


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
                    if key not in (*parts, "block"):
                        group[key] = () if key in ("learn", "anneal") else None
            group.update(own)
            groups[name] = group
    return groups
