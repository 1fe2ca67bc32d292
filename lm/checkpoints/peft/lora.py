"""LoRA in peft: the A and B of each matrix, by the name of its module."""

import collections
import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.checkpoints.hf.family import Family
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
from lm.finetuning.lora import Lora

# Keys of adapter_config.json, and the only values that are read; absent ones have them.
REQUIRED = {"bias": "none", "lora_bias": False, "use_dora": False, "modules_to_save": None}
# Keys that say how it was trained, or what is read from the tensors: none changes what is computed.
OTHER_KEYS = (
    *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("init_lora_weights", "lora_dropout", "eva_config", "qalora_group_size", "megatron_core"),
)
# Initialisations that leave the base as it is; others (pissa, olora, corda, loftq) change it.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def write(
    config: Config, params: Mapping[str, Any], family: Family
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and settings of what LoRA has added.

    Where transformers joins several kernels in one (GPT-2's queries, keys and values), the joint
    update has the ranks of all: A side by side, B in blocks; peft's rank_pattern says so.
    """
    joint: dict[str, list[tuple[ParamSource, Any, Any]]] = {}
    for source, own in added_params(params, "lora", config, family).values():
        a, b = (np.asarray(own[f"{x}_kernel"]) for x in "ab")
        for layer, name in enumerate(source.tensors):
            updates = joint.setdefault(module_name(family, name), [])
            updates.append((source, a[layer], b[layer]) if source.stacked else (source, a, b))
    tensors, ranks = {}, {}
    for name, updates in joint.items():
        parts = updates[0][0].mapping.part[1]
        size = updates[0][2].shape[1]
        tall = np.zeros((size * parts, sum(b.shape[0] for _, _, b in updates)), np.float32)
        column = 0
        for source, _, b in updates:
            row = source.mapping.part[0] * size
            tall[row : row + size, column : column + b.shape[0]] = b.T
            column += b.shape[0]
        wide = np.concatenate([a.T for _, a, _ in updates]).astype(np.float32)
        tensors |= dict(zip(_names(name), (wide, tall), strict=True))
        ranks[name] = column
    return tensors, _settings(config, family, ranks)


def _settings(config: Config, family: Family, ranks: Mapping[str, int]) -> dict[str, Any]:
    rank, alpha = config.finetuning.rank or Lora.rank, config.finetuning.alpha or Lora.alpha
    stable = config.finetuning.method == "rslora"
    patterns = {name: r for name, r in ranks.items() if r != rank}
    # alpha / r, or alpha / sqrt(r), stays what it is.
    scales = {n: alpha * (r / rank) ** (0.5 if stable else 1.0) for n, r in patterns.items()}
    return {
        "peft_type": "LORA",
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
    }


def read(
    adapter_config: Mapping[str, Any], tensors: Mapping[str, Any], config: Config, family: Family
) -> tuple[dict[str, Any], dict[tuple[str, ...], Any]]:
    """Keys of config.finetuning, and the parameters of LoRA by path.

    Raises:
      UserError: where the adapter has what LoRA here cannot hold, such as several ranks.
    """
    if (init := adapter_config.get("init_lora_weights")) not in _INITS:
        raise UserError(
            f"it began with {init!r}, which changes the base; save it from peft with "
            "path_initial_model_for_weight_conversion"
        )
    known, power = kernel_sources(config, family), 0.5 if adapter_config.get("use_rslora") else 1.0
    flat, ranks, scales, read = {}, set(), set(), set()
    for path, source in known.items():
        pairs = [_pair(tensors, module_name(family, tensor), source) for tensor in source.tensors]
        if None in pairs:
            continue
        read |= {name for tensor in source.tensors for name in _names(module_name(family, tensor))}
        a, b = (np.stack(x) if source.stacked else x[0] for x in zip(*pairs, strict=True))
        ranks.add(rank := a.shape[-1])
        alphas = {_alpha(adapter_config, module_name(family, tensor)) for tensor in source.tensors}
        scales |= {alpha / rank**power for alpha in alphas}
        flat[(*path, "lora", "a_kernel")] = jnp.asarray(a)
        flat[(*path, "lora", "b_kernel")] = jnp.asarray(b)
    check_all_read(tensors, read, family)
    if len(ranks) != 1 or not math.isclose(min(scales), max(scales)):
        raise UserError(
            f"it has ranks {sorted(ranks)} and scales {sorted(scales)}; here all matrices have one"
        )
    (rank,), scale = ranks, min(scales)
    targets = collections.Counter("/".join(path[-4:-2]) for path in flat if path[-1] == "a_kernel")
    if len(set(targets.values())) > 1:
        raise UserError("it has matrices in some layers only; here all layers have them")
    return {
        "method": "rslora" if adapter_config.get("use_rslora") else "lora",
        "rank": rank,
        "alpha": scale * rank**power,
        "target_modules": tuple(sorted(targets)),
    }, flat


def _alpha(adapter_config: Mapping[str, Any], name: str) -> float:
    """Of a module: what alpha_pattern's first regular expression for its name or its end gives."""
    for key, alpha in (adapter_config.get("alpha_pattern") or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return float(alpha)
        except re.error as error:
            raise UserError(
                f"its alpha_pattern has {key!r}, which is no regular expression ({error})"
            ) from None
    return float(adapter_config["lora_alpha"])


def _pair(
    tensors: Mapping[str, Any], name: str, source: ParamSource
) -> tuple[np.ndarray, np.ndarray] | None:
    """A and B of one kernel; of a joint one, its rows of B."""
    wide, tall = _names(name)
    if wide not in tensors:
        return None
    k, parts = source.mapping.part
    b = tensors[tall]
    rows = len(b) // parts
    return tensors[wide].T, b[k * rows : (k + 1) * rows].T


def _names(name: str) -> tuple[str, str]:
    """The tensors A and B of a module."""
    return f"{PEFT_PREFIX}{name}.lora_A.weight", f"{PEFT_PREFIX}{name}.lora_B.weight"
