"""Prompts and prefixes in peft: one matrix, with a row for each virtual token."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from lm.attention.positions import apply_rotary
from lm.checkpoints.hf.family import Family, resolved_keys
from lm.checkpoints.peft.names import check_all_read
from lm.config import Config
from lm.errors import UserError
from lm.model.resolve import scans_layers

REQUIRED = {"prefix_projection": False, "num_transformer_submodules": 1, "modules_to_save": None}
OTHER_KEYS = (
    *("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"),
    *("encoder_hidden_size", "init_weights", "prompt_tuning_init", "prompt_tuning_init_text"),
    *("tokenizer_name_or_path", "tokenizer_kwargs"),
)
_TENSOR = "prompt_embeddings"
_PROMPT = ("inputs", "prompt", "vectors")
_KINDS = ("prefix_key", "prefix_value")


def write_prompt(config: Config, params: Mapping[str, Any], family: Family) -> tuple[dict, dict]:
    """The virtual tokens' vectors [P, D], and settings."""
    _check_prompt(config, family)
    vectors = np.asarray(flatten_dict(params)[_PROMPT], np.float32)
    heads = config.model.num_heads
    return {_TENSOR: vectors}, _settings("PROMPT_TUNING", config, vectors, heads, vectors.shape[1])


def read_prompt(
    adapter_config: Mapping[str, Any], tensors: Mapping[str, Any], config: Config, family: Family
) -> tuple[dict[str, Any], dict[tuple[str, ...], Any]]:
    """Keys of config.finetuning, and the vectors by path."""
    _check_prompt(config, family)
    check_all_read(tensors, [_TENSOR], family)
    vectors, width = tensors[_TENSOR], resolved_keys(config)["model.embedding_dim"]
    if vectors.shape != (adapter_config["num_virtual_tokens"], width):
        raise UserError(
            f"it has {_TENSOR} {list(vectors.shape)}, but this {family.model_type}'s words have "
            f"{width} features"
        )
    settings = {"method": "prompt", "num_virtual_tokens": len(vectors)}
    return settings, {_PROMPT: jnp.asarray(vectors)}


def write_prefix(config: Config, params: Mapping[str, Any], family: Family) -> tuple[dict, dict]:
    """Keys and values of all layers, [P, layers * 2 * G * K], and settings.

    In peft the text's positions begin at P, here at 0: rotary positions rotate its keys by P.
    """
    _check_prefix(config, family)
    flat: Any = flatten_dict(params)
    kinds = [np.stack([flat[path] for path in paths]) for paths in _prefix_paths(config)]
    layers = np.stack([_rotated(kinds[0], config, 1), kinds[1]], axis=1)  # [layers, 2, P, G, K]
    vectors = np.moveaxis(layers, 2, 0)
    groups, width = vectors.shape[-2], vectors.shape[-2] * vectors.shape[-1]
    vectors = vectors.reshape(len(vectors), -1).astype(np.float32)
    return {_TENSOR: vectors}, {
        **_settings("PREFIX_TUNING", config, vectors, groups, width),
        "prefix_projection": False,
        "encoder_hidden_size": width,
    }


def read_prefix(
    adapter_config: Mapping[str, Any], tensors: Mapping[str, Any], config: Config, family: Family
) -> tuple[dict[str, Any], dict[tuple[str, ...], Any]]:
    """Keys of config.finetuning, and keys and values by path; see `write_prefix`."""
    _check_prefix(config, family)
    check_all_read(tensors, [_TENSOR], family)
    keys, number = resolved_keys(config), adapter_config["num_virtual_tokens"]
    shape = (number, config.model.num_layers, 2, keys["model.num_kv_heads"], keys["model.head_dim"])
    vectors = tensors[_TENSOR]
    if vectors.size != np.prod(shape):
        raise UserError(
            f"it has {_TENSOR} {list(vectors.shape)}, but keys and values of this "
            f"{family.model_type} are {list(shape)}"
        )
    layers = np.moveaxis(vectors.reshape(shape), 0, 2)
    kinds = (_rotated(layers[:, 0], config, -1), layers[:, 1])
    return {"method": "prefix", "num_virtual_tokens": number}, {
        path: jnp.asarray(value)
        for paths, kind in zip(_prefix_paths(config), kinds, strict=True)
        for path, value in zip(paths, kind, strict=True)
    }


def _prefix_paths(config: Config) -> list[list[tuple[str, ...]]]:
    layers = [
        ("stack", f"layer_{i}", "attention", "mechanism") for i in range(config.model.num_layers)
    ]
    return [[(*layer, kind, "vectors") for layer in layers] for kind in _KINDS]


def _check_prompt(config: Config, family: Family) -> None:
    if config.model.architecture != "decoder":
        raise UserError(
            f"in peft, the decoder of a {family.model_type} sees the encoder's states of a prompt, "
            "and here it does not; only decoders exchange prompts"
        )


def _check_prefix(config: Config, family: Family) -> None:
    shifted = config.model.position_embedding in ("rotary", "none")
    if config.model.architecture != "decoder" or not shifted:
        raise UserError(
            f"peft counts the positions of a {family.model_type}'s text from behind a prefix, and "
            "here they stay; only decoders with rotary positions exchange prefixes"
        )
    if scans_layers(config.model):
        raise UserError("prefixes are exchanged with config.model.scan=False alone")


def _rotated(keys: np.ndarray, config: Config, sign: int) -> np.ndarray:
    """Keys [layers, P, G, K] as they are P positions later, or (-1) earlier."""
    if config.model.position_embedding == "none":
        return keys
    shift = np.full(keys.shape[:2], sign * keys.shape[1])
    return np.asarray(apply_rotary(jnp.asarray(keys), jnp.asarray(shift), config.model.rope_theta))


def _settings(
    kind: str, config: Config, vectors: np.ndarray, heads: int, width: int
) -> dict[str, Any]:
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": len(vectors),
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": config.model.num_layers,
    }
