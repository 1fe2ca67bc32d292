"""How does a model of ours become a folder that transformers loads? By the family whose function it
has, whose table of views is read backwards, tensor by tensor.
"""

import collections
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import Config, attention_groups
from lm.data import Tokenizer
from lm.errors import UserError
from lm.frame import framed
from lm.partition import path_name
from lm.pretrained.family import Family
from lm.pretrained.tensors import SAFE
from lm.pretrained.view import View, sources

_SHARD = 5 * 10**9  # bytes; what transformers itself puts in one file


def fitting_family(config: Config, families: Mapping[str, Family], wish: str | None) -> Family:
    """The family that a config's model belongs to: `wish` where it still does, else the first.

    Raises:
      UserError: where transformers has no such model.
    """
    plain: dict[str, tuple[Any, Any]] = {
        "output.head": (config.output.head, "softmax"),
        "output.cap": (config.output.cap, None),
    }
    for name, group in attention_groups(config).items():
        plain[f"{name}.mechanism"] = (group.mechanism, "scores")
        plain[f"{name}.weighting"] = (group.weighting, "softmax")
    swapped = [f"config.{key} = {own!r}" for key, (own, value) in plain.items() if own != value]
    if swapped:
        raise UserError(f"transformers has no model with {swapped[0]}; only softmax is exported")
    order = sorted(families.values(), key=lambda family: family.model_type != wish)
    reasons = [(family.misfit(config), family.model_type) for family in order]
    for family, (reason, _) in zip(order, reasons, strict=True):
        if reason is None:
            return family
    told = "; ".join(f"{name}: {reason}" for reason, name in reasons)
    raise UserError(f"this model is of no family that can be written ({told})")


def export(config: Config, params: Any, tokenizer: Tokenizer, folder: Path, family: Family) -> None:
    """Writes config.json, model.safetensors (in shards where it is large) and the tokenizer.

    Raises:
      UserError: where the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder to write to")
    folder.mkdir(parents=True, exist_ok=True)
    theirs = family.to_theirs(config, tokenizer.vocab_size)
    if config.model.architecture == "encoder_decoder":
        theirs["decoder_start_token_id"] = framed(config.frame, tokenizer.end).opens[0]
    (folder / "config.json").write_text(json.dumps(theirs, indent=2) + "\n")
    _write_shards(folder, tensors(config, params, family))
    if tokenizer.json is not None:
        (folder / "tokenizer.json").write_text(tokenizer.json)
        end = tokenizer.spec["end"]
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def tensors(config: Config, params: Any, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a checkpoint, one after the other; `params` may be on any mesh.

    Raises:
      UserError: where a parameter has no place in the family's checkpoints.
    """
    known = sources(family.views(config), config.model.layers)
    parts: dict[str, list[tuple[View, Any]]] = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if name not in known:
            raise UserError(f"a {family.model_type} of transformers has no place for {name}")
        source = known[name]
        for layer, tensor in enumerate(source.names):
            parts[tensor].append((source.view, (leaf, layer if source.stacked else None)))
    for name, pieces in parts.items():
        values = [(view, _fetch(*where)) for view, where in pieces]
        view, value = values[0]
        array = np.zeros(view.their_shape(value.shape), np.float32)
        for view, value in values:
            view.write(array, value)
        inside = not name.startswith(family.outside) if family.outside else True
        yield (family.prefix if inside else "") + name, array


def _fetch(leaf: Any, layer: int | None) -> np.ndarray:
    return np.asarray(jax.device_get(leaf if layer is None else leaf[layer]), np.float32)


def _write_shards(folder: Path, arrays: Iterator[tuple[str, np.ndarray]]) -> None:
    from safetensors.numpy import save_file

    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}

    def write() -> None:
        save_file(held, folder / f"{len(shards)}.partial", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    total = 0
    for name, array in arrays:
        if held and sum(a.nbytes for a in held.values()) + array.nbytes > _SHARD:
            write()
        held[name] = array
        total += array.nbytes
    write()
    if len(shards) == 1:
        (folder / "0.partial").rename(folder / SAFE)
        return
    places = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.partial").rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{SAFE}.index.json").write_text(json.dumps(index, indent=2) + "\n")
