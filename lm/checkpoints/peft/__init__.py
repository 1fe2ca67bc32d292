"""How does an adapter travel? As a folder of the package peft: what it is in adapter_config.json,
and its numbers in adapter_model.safetensors, by the names that transformers has for the base.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.checkpoints.hf import family_of
from lm.checkpoints.hf.family import Family
from lm.checkpoints.peft import ia3, lora, virtual
from lm.config import Config, plain
from lm.data.files import read_json
from lm.errors import UserError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of adapter that peft has.

    Attributes:
      methods: of ours that are such.
      write: (config, params, family) -> its tensors and settings.
      read: (settings, tensors, config, family) -> our knobs of config.finetuning and our additions
        by their paths; raises UserError with what the folder has that ours cannot hold.
      demands: settings with the only values that are read; absent ones have them.
      known: the other settings that are read, or change nothing that is computed.
    """

    methods: tuple[str, ...]
    write: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    read: Callable[..., tuple[dict[str, Any], dict[tuple[str, ...], Any]]]
    demands: Mapping[str, Any]
    known: tuple[str, ...]


# Settings of all kinds that say where an adapter is from and what for.
_KNOWN = (
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
FORMATS: dict[str, Format] = {
    "LORA": Format(("lora", "rslora"), lora.write, lora.read, lora.DEMANDS, lora.KNOWN),
    "IA3": Format(("ia3",), ia3.write, ia3.read, ia3.DEMANDS, ia3.KNOWN),
    "PROMPT_TUNING": Format(
        ("prompt",), virtual.write_prompt, virtual.read_prompt, virtual.DEMANDS, virtual.KNOWN
    ),
    "PREFIX_TUNING": Format(
        ("prefix",), virtual.write_prefix, virtual.read_prefix, virtual.DEMANDS, virtual.KNOWN
    ),
}


def save(folder: pathlib.Path, config: Config, params: Any, family: Family) -> None:
    """Writes what a method has added to a model, for peft to load onto the same base.

    Args:
      folder: new, or empty.
      config: of the tuned run.
      params: all parameters, or those of the additions.
      family: of the base.

    Raises:
      UserError: where peft has no such method, or the folder is not empty.
    """
    from safetensors.numpy import save_file

    method = config.finetuning.method
    form = next((form for form in FORMATS.values() if method in form.methods), None)
    if form is None:
        known = [name for form in FORMATS.values() for name in form.methods]
        raise UserError(
            f"config.finetuning.method = {method!r} is not one of {', '.join(known)}, which can be "
            "written for peft"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder to write to")
    tensors, settings = form.write(config, params, family)
    folder.mkdir(parents=True, exist_ok=True)
    # A transposed array would be written as if it were not.
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    settings = {
        "task_type": None,
        "base_model_name_or_path": config.init_from.removeprefix("hf:") or None,
        "inference_mode": True,
        "modules_to_save": None,
        **settings,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def load(folder: pathlib.Path, config: Config, family: Family) -> tuple[Config, Any]:
    """A config for the adapter in a folder that peft wrote, and its additions.

    Args:
      folder: what peft's `save_pretrained` wrote.
      config: of the base.
      family: of the base.

    Returns:
      The config with the adapter's method and options, and the tree of what is trained.

    Raises:
      UserError: where there is none, it is damaged, or it has what ours have not.
    """
    theirs, tensors = _opened(folder)
    form = FORMATS.get(str(theirs.get("peft_type")))
    if form is None:
        raise UserError(
            f"{folder / CONFIG} has peft_type {theirs.get('peft_type')!r}; only "
            f"{', '.join(FORMATS)} are read"
        )
    _check_settings(folder / CONFIG, theirs, form)
    try:
        settings, flat = form.read(theirs, tensors, config, family)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} is damaged, or no adapter of this {family.model_type} ({plain(error)})"
        ) from None
    config = config.copy_and_resolve_references()
    method = config.finetuning.method
    if settings["method"] in method.split("+"):
        settings["method"] = method
    elif method != "full":
        raise UserError(
            f"{folder} is of method {settings['method']}, which config.finetuning.method = "
            f"{method!r} "
            "does not name; add it"
        )
    config.finetuning.update(settings)
    return config, unflatten_dict(flat)


def _check_settings(file: pathlib.Path, theirs: Mapping[str, Any], form: Format) -> None:
    """Raises UserError where a setting is set that changes what is computed, or may: what a later
    version of peft adds is known to nobody here.
    """
    for key, found in theirs.items():
        if key in form.demands:
            if found is not None and found != form.demands[key]:
                raise UserError(f"{file} has {key} {found!r}; only {form.demands[key]!r} is read")
        elif found and key not in (*_KNOWN, *form.known):
            raise UserError(
                f"{file} has {key} {str(found)[:80]!r}, which is not known here and may change "
                "what is computed; train without it, or have peft merge the adapter into its base"
            )


def _opened(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What peft wrote into a folder: its settings and tensors."""
    import safetensors
    from safetensors.numpy import load_file

    for name in (CONFIG, TENSORS):
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}; give a folder that peft saved with safe_serialization"
            )
    theirs = read_json(folder / CONFIG)
    try:
        return theirs, load_file(folder / TENSORS)
    except (AttributeError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} is damaged ({plain(error)}); save it again") from None


def adopt(config: Config) -> Config:
    """A config whose finetuning.adapter_from names a folder, with the method and options of the
    adapter there; any other as it is. Methods that are set besides stay.
    """
    return _adapter(config)[0] if config.finetuning.adapter_from else config


def additions(config: Config) -> dict[str, Any]:
    """The additions in the folder that an adopted config's finetuning.adapter_from names, by
    path.
    """
    return flatten_dict(_adapter(config)[1], sep="/")


def _adapter(config: Config) -> tuple[Config, Any]:
    folder = pathlib.Path(config.finetuning.adapter_from).expanduser()
    return load(folder, config, family_of(config))
