"""The scales of IA3 in peft: a vector for each module, of its inputs or of its outputs."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.checkpoints.hf.family import Family, resolved_keys
from lm.checkpoints.hf.tensor_mapping import ParamSource
from lm.checkpoints.peft.names import (
    PEFT_PREFIX,
    added_params,
    check_all_read,
    kernel_sources,
    module_name,
)
from lm.config import Config
from lm.errors import UserError
from lm.finetuning.method import ends_with

REQUIRED = {"modules_to_save": None}
OTHER_KEYS = (
    *("target_modules", "exclude_modules", "feedforward_modules"),
    *("init_ia3_weights", "fan_in_fan_out"),
)
_INNER = ("feed_forward/out",)  # scaled is what it reads
_SCALED = ("key", "value", *_INNER)


def write(
    config: Config, params: Mapping[str, Any], family: Family
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and settings of the scales; what a joint matrix has besides is scaled by ones."""
    tensors: dict[str, Any] = {}
    inner = set()
    for path, (source, own) in added_params(params, "ia3", config, family).items():
        scales = np.asarray(own["scale"], np.float32)
        k, parts = source.mapping.part
        for layer, tensor in enumerate(source.tensors):
            name, scale = module_name(family, tensor), scales[layer] if source.stacked else scales
            whole = tensors.setdefault(name, np.ones(parts * len(scale), np.float32))
            whole[k * len(scale) : (k + 1) * len(scale)] = scale
            inner |= {name} if ends_with(path, _INNER) else set()
    return {
        f"{PEFT_PREFIX}{name}.ia3_l": scale[None, :] if name in inner else scale[:, None]
        for name, scale in tensors.items()
    }, {
        "peft_type": "IA3",
        "target_modules": sorted(tensors),
        "feedforward_modules": sorted(inner),
        "fan_in_fan_out": family.model_type == "gpt2",
    }


def read(
    adapter_config: Mapping[str, Any], tensors: Mapping[str, Any], config: Config, family: Family
) -> tuple[dict[str, Any], dict[tuple[str, ...], Any]]:
    """Keys of config.finetuning, and the scales by path; ones where the adapter has none.

    peft's may scale queries as well. Without rotation between, (s q) k = q (s k), so that the keys'
    scales are multiplied by those of the queries.

    Raises:
      UserError: where the adapter has what IA3 here cannot hold.
    """
    known = kernel_sources(config, family)
    scaled = {path: s for path, s in known.items() if ends_with(path, _SCALED)}
    queries = {path: s for path, s in known.items() if path[-1] == "query"}
    rotated = config.model.position_embedding == "rotary" or config.model.qk_norm
    flat = {}
    for path, source in scaled.items():
        _check_side(tensors, family, path, source)
        scale = _scale(tensors, family, source)
        of_key = path[-1] == "key"
        query = _scale(tensors, family, queries[(*path[:-1], "query")]) if of_key else None
        if query is not None and not np.all(query == 1):
            if rotated or (scale is not None and scale.shape != query.shape):
                raise UserError(
                    f"it scales queries, which this {family.model_type} cannot take into its keys"
                )
            scale = query if scale is None else query * scale
        flat[path] = _ones(path, source, config) if scale is None else scale
    names = [_names(family, source) for source in (scaled | queries).values()]
    read = {name for each in names if all(x in tensors for x in each) for name in each}
    check_all_read(tensors, read, family)
    return {"method": "ia3"}, {
        (*path, "ia3", "scale"): jnp.asarray(scale) for path, scale in flat.items()
    }


def _check_side(
    tensors: Mapping[str, Any], family: Family, path: tuple[str, ...], source: ParamSource
) -> None:
    """Raises UserError where a matrix is scaled on the side that peft does not scale."""
    inner = ends_with(path, _INNER)
    for name in _names(family, source):
        if name in tensors and tensors[name].shape[0 if inner else -1] != 1:
            module = name.removeprefix(PEFT_PREFIX).removesuffix(".ia3_l")
            side = ("gives", "reads") if inner else ("reads", "gives")
            raise UserError(
                f"it scales what {module} {side[0]}, and here that is what it {side[1]}; see "
                "feedforward_modules"
            )


def _scale(tensors: Mapping[str, Any], family: Family, source: ParamSource) -> np.ndarray | None:
    """The scales of one kernel, [...] or [layers, ...]; of a joint one, its part."""
    names = _names(family, source)
    if any(name not in tensors for name in names):
        return None
    k, parts = source.mapping.part
    scales = [np.split(tensors[name].reshape(-1), parts)[k] for name in names]
    return np.stack(scales) if source.stacked else scales[0]


def _names(family: Family, source: ParamSource) -> list[str]:
    """The tensors of one kernel, of every layer that is stacked in it."""
    return [f"{PEFT_PREFIX}{module_name(family, tensor)}.ia3_l" for tensor in source.tensors]


def _ones(path: tuple[str, ...], source: ParamSource, config: Config) -> np.ndarray:
    keys = resolved_keys(config)
    size = keys["model.num_kv_heads"] * keys["model.head_dim"]
    size = keys["model.mlp_dim"] if ends_with(path, _INNER) else size
    return np.ones((len(source.tensors), size) if source.stacked else size, np.float32)
