"""How does a LoRA travel? As a folder of the package peft: adapter_config.json, and each matrix's
A and B in adapter_model.safetensors, by the names that transformers has for the base.
"""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.config import Config
from lm.errors import UserError
from lm.pretrained.family import Family
from lm.pretrained.view import Source, sources
from lm.tune.lora import Lora

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_OUTER = "base_model.model."
_METHODS = ("lora", "rslora")


def save(folder: pathlib.Path, config: Config, params: Any, family: Family) -> None:
    """Writes what LoRA has added to a model, for peft to load onto the same base.

    Where transformers joins several of our matrices in one (GPT-2's queries, keys and values), the
    joint update has the ranks of all: A side by side, B in blocks; peft's rank_pattern says so.

    Args:
      folder: new, or empty.
      config: of the tuned run, its method lora or rslora.
      params: all parameters, or those of the additions.
      family: of the base.

    Raises:
      UserError: where peft has no such method, or the folder is not empty.
    """
    from safetensors.numpy import save_file

    if config.tune.method not in _METHODS:
        raise UserError(
            f"config.tune.method = {config.tune.method!r} is not one of {', '.join(_METHODS)}, "
            "which can be written for peft"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder to write to")
    joint: dict[str, list[tuple[Source, Any, Any]]] = {}
    for path, kernel in _places(params, sources(family.views(config), config.model.layers)).items():
        a, b = (np.asarray(_at(params, (*path, "lora", f"{x}_kernel"))) for x in "ab")
        for layer, name in enumerate(kernel.names):
            pieces = joint.setdefault(_module(family, name), [])
            pieces.append((kernel, a[layer], b[layer]) if kernel.stacked else (kernel, a, b))
    tensors, ranks = {}, {}
    for module, pieces in joint.items():
        parts = pieces[0][0].view.part[1]
        sizes = [b.shape[1] for _, _, b in pieces]
        tall = np.zeros((sizes[0] * parts, sum(b.shape[0] for _, _, b in pieces)), np.float32)
        column = 0
        for source, _, b in pieces:
            row = source.view.part[0] * sizes[0]
            tall[row : row + sizes[0], column : column + b.shape[0]] = b.T
            column += b.shape[0]
        wide = np.concatenate([a.T for _, a, _ in pieces]).astype(np.float32)
        tensors[f"{_OUTER}{module}.lora_A.weight"] = np.ascontiguousarray(wide)
        tensors[f"{_OUTER}{module}.lora_B.weight"] = tall
        ranks[module] = column
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(_settings(config, family, ranks), indent=2) + "\n")


def load(folder: pathlib.Path, config: Config, family: Family) -> tuple[Config, Any]:
    """A config for the adapter in a folder that peft wrote, and its additions.

    Args:
      folder: what peft's `save_pretrained` wrote, of a LoRA.
      config: of the base.
      family: of the base.

    Returns:
      The config with method, rank, alpha and targets, and the tree of what is trained.

    Raises:
      UserError: where the adapter has what ours have not.
    """
    from safetensors.numpy import load_file

    theirs = json.loads((folder / CONFIG).read_text())
    _refuse(folder, theirs)
    tensors = load_file(folder / TENSORS)
    known = sources(family.views(config), config.model.layers)
    flat, ranks = {}, set()
    for name, source in known.items():
        path = tuple(name.split("/"))
        if path[-1] != "kernel" or not _is_ours(path, config):
            continue
        pairs = [_pair(tensors, _module(family, tensor), source) for tensor in source.names]
        if None in pairs:
            continue
        a, b = (np.stack(x) if source.stacked else x[0] for x in zip(*pairs, strict=True))
        ranks.add(a.shape[-1])
        flat[(*path[:-1], "lora", "a_kernel")] = jnp.asarray(a)
        flat[(*path[:-1], "lora", "b_kernel")] = jnp.asarray(b)
    used = {_module(family, tensor) for name in known for tensor in known[name].names}
    others = {name.removeprefix(_OUTER).rsplit(".lora_", 1)[0] for name in tensors} - used
    if not flat or others or ranks != {theirs["r"]}:
        lacking = f"has {sorted(others)[0]}" if others else f"has ranks {sorted(ranks)}"
        raise UserError(f"{folder} {lacking}, which this {family.model_type} cannot hold")
    targets = collections.Counter("/".join(path[-4:-2]) for path in flat if path[-1] == "a_kernel")
    if len(set(targets.values())) > 1:
        raise UserError(f"{folder} has its matrices in some layers only; here all layers have them")
    settings = {
        "method": "rslora" if theirs.get("use_rslora") else "lora",
        "rank": theirs["r"],
        "alpha": float(theirs["lora_alpha"]),
        "targets": tuple(sorted(targets)),
    }
    config = config.copy_and_resolve_references()
    config.tune.update(settings)
    return config, unflatten_dict(flat)


def _is_ours(path: tuple[str, ...], config: Config) -> bool:
    """Whether the layers of a path are named as this model's are, one by one or stacked."""
    if path[0] not in ("stack", "encoder"):
        return True
    if config.model.share_layers:
        return path[1] == "shared_layer"
    return (path[1] == "layers") == config.model.scan and path[1] != "shared_layer"


def _refuse(folder: pathlib.Path, theirs: Mapping[str, Any]) -> None:
    plain = {
        "peft_type": "LORA",
        "bias": "none",
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    for key, value in plain.items():
        if (found := theirs.get(key, value)) != value:
            raise UserError(f"{folder / CONFIG} has {key} {found!r}; only {value!r} is read")


def _settings(config: Config, family: Family, ranks: Mapping[str, int]) -> dict[str, Any]:
    """What adapter_config.json says."""
    rank, alpha = config.tune.rank or Lora.rank, config.tune.alpha or Lora.alpha
    stable = config.tune.method == "rslora"
    patterns = {module: r for module, r in ranks.items() if r != rank}
    # alpha / r, or alpha / sqrt(r), stays what it is.
    scales = {m: alpha * (r / rank) ** (0.5 if stable else 1.0) for m, r in patterns.items()}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": config.init_from.removeprefix("hf:") or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": stable,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": family.model_type == "gpt2",
        "target_modules": sorted(ranks),
        "rank_pattern": patterns,
        "alpha_pattern": scales,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _places(params: Any, known: Mapping[str, Source]) -> dict[tuple[str, ...], Source]:
    """Of every layer that has an addition, by its path, where its kernel stands in theirs."""
    paths = sorted({path[:-2] for path in flatten_dict(params) if "lora" in path[:-1]})
    for path in paths:
        if f"{'/'.join(path)}/kernel" not in known:
            raise UserError(
                f"transformers has no matrix for {'/'.join(path)}; it cannot be written"
            )
    return {path: known[f"{'/'.join(path)}/kernel"] for path in paths}


def _pair(tensors: Any, module: str, source: Source) -> tuple[np.ndarray, np.ndarray] | None:
    """A and B of one of our matrices; of a joint one, its rows of B."""
    name = f"{_OUTER}{module}.lora_A.weight"
    if name not in tensors:
        return None
    k, parts = source.view.part
    b = tensors[f"{_OUTER}{module}.lora_B.weight"]
    rows = len(b) // parts
    return tensors[name].T, b[k * rows : (k + 1) * rows].T


def _module(family: Family, tensor: str) -> str:
    inside = not tensor.startswith(family.outside) if family.outside else True
    return (family.prefix if inside else "") + tensor.removesuffix(".weight")


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
