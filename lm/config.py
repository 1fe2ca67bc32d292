"""Which experiment is it? A config's file, its data, the hash that names it, and its overrides."""

import glob
import hashlib
import importlib.util
import json
import os
import types
from collections.abc import Iterable, Mapping
from typing import Any

from lm.check_names import nearest
from lm.errors import UserError

# A ConfigDict, whose attributes have no types that a checker could know.
Config = Any

# What may differ between a run and its resumption: where it runs, what it prints, and what it is
# asked when it is trained.
_INCIDENTAL = ("mesh", "checkpoint", "log", "cache", "prompt")


def load(path: str) -> types.ModuleType:
    """A config's file as a module.

    Raises:
      UserError: where there is none, or Python refuses it.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no config {path}{nearest(path, glob.glob('configs/*.py'))}")
    spec: Any = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {plain(error)}") from None
    return module


def defaults(name: str) -> dict[str, Any]:
    """The flat dotted settings of a config FILE[:ARG] as its file has them.

    Raises:
      UserError: where there is no such file or argument, or it returns no config.
    """
    path, _, arg = name.partition(":")
    try:
        return flatten(load(path).get_config(arg or None).to_dict())
    except ValueError as error:
        raise UserError(f"{path}: {plain(error)}") from None
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{path} has no get_config(arg) that returns a ConfigDict: {plain(error)}"
        ) from None


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
    for key, value in overrides.items():
        try:
            config.update_from_flattened_dict({key: value})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"sweep() sets config.{key} = {value!r}: {plain(error)}") from None
    return config


def plain(error: BaseException) -> str:
    """The message of an exception in one line."""
    return " ".join(str(error.args[0] if error.args else error).split())


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
