"""Reads and writes adapters as folders of the package peft: settings in adapter_config.json, and
parameters in adapter_model.safetensors, by the names that transformers has for the base.
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
class AdapterFormat:
    """A kind of adapter that peft has.

    Attributes:
      methods: the names in `METHODS` of what it holds.
      write: (config, params, family) -> its tensors and settings.
      read: (settings, tensors, config, family) -> keys of config.finetuning, and the adapter's
        parameters by path; raises UserError where the folder has what no method here can hold.
      required: settings with the only values that are read; absent ones have them.
      known: the other settings that are read, or change nothing that is computed.
    """

    methods: tuple[str, ...]
    write: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    read: Callable[..., tuple[dict[str, Any], dict[tuple[str, ...], Any]]]
    required: Mapping[str, Any]
    known: tuple[str, ...]


# Settings of all kinds that describe where an adapter is from and what it is for.
_OTHER_KEYS = (
    *("peft_type", "task_type", "peft_version", "auto_mapping", "inference_mode"),
    *("base_model_name_or_path", "revision"),
)
_LORA, _IA3, _VIRTUAL = ((x.REQUIRED, x.OTHER_KEYS) for x in (lora, ia3, virtual))
FORMATS: dict[str, AdapterFormat] = {
    "LORA": AdapterFormat(("lora", "rslora"), lora.write, lora.read, *_LORA),
    "IA3": AdapterFormat(("ia3",), ia3.write, ia3.read, *_IA3),
    "PROMPT_TUNING": AdapterFormat(
        ("prompt",), virtual.write_prompt, virtual.read_prompt, *_VIRTUAL
    ),
    "PREFIX_TUNING": AdapterFormat(
        ("prefix",), virtual.write_prefix, virtual.read_prefix, *_VIRTUAL
    ),
}


def save_adapter(
    folder: pathlib.Path, config: Config, params: Mapping[str, Any], family: Family
) -> None:
    """Writes what a method has added to a model, for peft to load onto the same base.

    Args:
      folder: new, or empty.
      config: of the run that trained it.
      params: all parameters, or those of the adapter.
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


def load_adapter(folder: pathlib.Path, config: Config, family: Family) -> tuple[Config, Any]:
    """A config for the adapter in a folder that peft wrote, and its parameters.

    Args:
      folder: what peft's `save_pretrained` wrote.
      config: of the base.
      family: of the base.

    Returns:
      The config with the adapter's method and options, and the tree of what is trained.

    Raises:
      UserError: where there is none, it is damaged, or it has what no method here can hold.
    """
    adapter_config, tensors = _read_folder(folder)
    form = FORMATS.get(str(adapter_config.get("peft_type")))
    if form is None:
        raise UserError(
            f"{folder / CONFIG} has peft_type {adapter_config.get('peft_type')!r}; only "
            f"{', '.join(FORMATS)} are read"
        )
    _check_settings(folder / CONFIG, adapter_config, form)
    try:
        settings, flat = form.read(adapter_config, tensors, config, family)
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
            f"{method!r} does not name; add it"
        )
    config.finetuning.update(settings)
    return config, unflatten_dict(flat)


def _check_settings(file: pathlib.Path, found: Mapping[str, Any], form: AdapterFormat) -> None:
    """Raises UserError for a setting that changes what is computed, or may, as an unknown one."""
    for key, value in found.items():
        if key in form.required:
            if value is not None and value != form.required[key]:
                raise UserError(f"{file} has {key} {value!r}; only {form.required[key]!r} is read")
        elif value and key not in (*_OTHER_KEYS, *form.known):
            raise UserError(
                f"{file} has {key} {str(value)[:80]!r}, which is not known here and may change "
                "what is computed; train without it, or have peft merge the adapter into its base"
            )


def _read_folder(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What peft wrote into a folder: its settings and tensors."""
    import safetensors
    from safetensors.numpy import load_file

    for name in (CONFIG, TENSORS):
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}; give a folder that peft saved with safe_serialization"
            )
    adapter_config = read_json(folder / CONFIG)
    try:
        return adapter_config, load_file(folder / TENSORS)
    except (AttributeError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} is damaged ({plain(error)}); save it again") from None


def with_adapter_keys(config: Config) -> Config:
    """A config whose finetuning.adapter_from names a folder, with the method and options of the
    adapter there; any other unchanged. Methods that are set besides stay.
    """
    return _adapter_of(config)[0] if config.finetuning.adapter_from else config


def adapter_params(config: Config) -> dict[str, Any]:
    """By path, the parameters in finetuning.adapter_from of a config of `with_adapter_keys`."""
    return flatten_dict(_adapter_of(config)[1], sep="/")


def _adapter_of(config: Config) -> tuple[Config, Any]:
    folder = pathlib.Path(config.finetuning.adapter_from).expanduser()
    return load_adapter(folder, config, family_of(config))
