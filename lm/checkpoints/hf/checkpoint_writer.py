"""Writes a model as a folder that transformers loads. The mappings of the family that computes the
same are read backwards, tensor by tensor.
"""

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.checkpoints.hf.checkpoint import Checkpoint
from lm.checkpoints.hf.family import Family
from lm.checkpoints.hf.task_head import TaskHead, task_head
from lm.checkpoints.hf.tensor_mapping import TensorMapping, param_sources
from lm.checkpoints.hf.tensors import SAFE
from lm.checkpoints.hf.tokenizer_writer import base_settings, write_generation, write_tokenizer
from lm.config import Config
from lm.data import Tokenizer
from lm.data.special_tokens import encoder_decoder_tokens
from lm.devices.sharding import path_name
from lm.errors import UserError
from lm.model.resolve import attention_groups
from lm.tasks import predicts_tokens
from lm.tasks.layout import Layout

_SHARD = 5 * 10**9  # bytes; what transformers itself puts in one file


def matching_family(
    config: Config, families: Mapping[str, Family], preferred: str | None
) -> Family:
    """The family that a config's model belongs to: `preferred` where it matches, else the first.

    Raises:
      UserError: where transformers has no such model.
    """
    plain: dict[str, tuple[Any, Any]] = {}
    if predicts_tokens(config):  # else see `task_head`
        plain["output.head"] = (config.output.head, "softmax")
        plain["output.cap"] = (config.output.cap, None)
    for name, group in attention_groups(config).items():
        plain[f"{name}.mechanism"] = (group.mechanism, "scores")
        plain[f"{name}.weighting"] = (group.weighting, "softmax")
    swapped = [f"config.{key} = {own!r}" for key, (own, value) in plain.items() if own != value]
    if swapped:
        raise UserError(f"transformers has no model with {swapped[0]}; only softmax is exported")
    order = sorted(families.values(), key=lambda family: family.model_type != preferred)
    reasons = []
    for family in order:
        if (reason := family.incompatibility(config)) is None:
            return family
        reasons.append(f"{family.model_type}: {reason}")
    raise UserError(f"this model is of no family that can be written ({'; '.join(reasons)})")


def write_checkpoint(
    config: Config,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    folder: Path,
    family: Family,
    *,
    base: Checkpoint | None = None,
    labels: Sequence[str] = (),
    layout: Layout | None = None,
) -> str:
    """Writes config.json, model.safetensors (in shards where it is large), the tokenizer with its
    special tokens and templates, and generation_config.json.

    Args:
      config: of the run.
      params: its parameters, on any mesh; additions are merged.
      tokenizer: its tokenizer.
      folder: where to; new, or empty.
      family: of its model.
      base: the checkpoint that it began with, whose special tokens and templates are kept.
      labels: of a task, in the order of their numbers.
      layout: of a task's rows.

    Returns:
      The class of transformers that it is.

    Raises:
      UserError: where the folder is not empty, or transformers has no head that computes the same.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder to write to")
    head = None if predicts_tokens(config) else task_head(config, family, labels)
    settings = None if base is None else base_settings(base.folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder, config, tokenizer, settings, layout)
    own = {} if base is None else base.hf_config
    kept = {key: value for key, value in own.items() if key.endswith("_token_id")}
    hf_config = {**ids, **kept, **family.config_to_hf(config, tokenizer.vocab_size)}
    if config.model.architecture == "encoder_decoder":
        hf_config["decoder_start_token_id"] = encoder_decoder_tokens(
            config.special_tokens, tokenizer.end
        ).opens[0]
    if head is not None:
        hf_config |= head.settings
        if "pad_token_id" not in family.required:
            hf_config["pad_token_id"] = ids.get("pad_token_id")
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")
    write_generation(folder, config, None if base is None else base.folder, hf_config)
    _write_shards(folder, tensors(config, params, family, head))
    return hf_config["architectures"][0]


def tensors(
    config: Config, params: Mapping[str, Any], family: Family, head: TaskHead | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a checkpoint, one after the other; `params` may be on any mesh.

    Raises:
      UserError: where a parameter has no place in the family's checkpoints.
    """
    mappings, names = family.mappings(config), family
    if head is not None:
        kept = (m for m in mappings if not m.param.startswith(family.optional))
        mappings, names = [*kept, *head.mappings], head
    known = param_sources(mappings, config.model.num_layers)
    parts: dict[str, list[tuple[TensorMapping, Any, int | None]]] = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if name not in known:
            raise UserError(f"a {family.model_type} of transformers has no place for {name}")
        source = known[name]
        for layer, tensor in enumerate(source.tensors):
            parts[tensor].append((source.mapping, leaf, layer if source.stacked else None))
    for name, pieces in parts.items():
        values = [(mapping, _fetch(leaf, layer)) for mapping, leaf, layer in pieces]
        mapping, value = values[0]
        array = np.zeros(mapping.hf_shape(value.shape), np.float32)
        for mapping, value in values:
            mapping.write(array, value)
        yield names.full_name(name), array
    if head is not None and head.bias is not None:
        yield head.bias[0], np.zeros(head.bias[1], np.float32)


def _fetch(leaf: jax.Array, layer: int | None) -> np.ndarray:
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
