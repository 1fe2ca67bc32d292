"""How do learned scales travel? Each module's vector, of what it reads or of what it gives."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.checkpoints.hf.family import Family, explicit
from lm.checkpoints.hf.view import Source
from lm.checkpoints.peft.names import OUTER, check_all_read, matrices, module, places
from lm.config import Config
from lm.errors import UserError
from lm.finetuning.method import ends_with

DEMANDS = {"modules_to_save": None}
KNOWN = (
    "target_modules",
    "exclude_modules",
    "feedforward_modules",
    "fan_in_fan_out",
    "init_ia3_weights",
)
_INNER = ("feed_forward/out",)  # scaled is what it reads
_SCALED = ("key", "value", *_INNER)


def write(config: Config, params: Any, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and settings of the scales; what a joint matrix has besides is scaled by ones."""
    tensors: dict[str, Any] = {}
    inner = set()
    for path, (source, own) in places(params, "ia3", config, family).items():
        scales = np.asarray(own["scale"], np.float32)
        k, parts = source.view.part
        for layer, tensor in enumerate(source.names):
            name, scale = module(family, tensor), scales[layer] if source.stacked else scales
            whole = tensors.setdefault(name, np.ones(parts * len(scale), np.float32))
            whole[k * len(scale) : (k + 1) * len(scale)] = scale
            inner |= {name} if ends_with(path, _INNER) else set()
    return {
        f"{OUTER}{name}.ia3_l": scale[None, :] if name in inner else scale[:, None]
        for name, scale in tensors.items()
    }, {
        "peft_type": "IA3",
        "target_modules": sorted(tensors),
        "feedforward_modules": sorted(inner),
        "fan_in_fan_out": family.model_type == "gpt2",
    }


def read(
    theirs: Mapping[str, Any], tensors: Mapping[str, Any], config: Config, family: Family
) -> tuple[dict[str, Any], dict[tuple[str, ...], Any]]:
    """Our knobs, and our scales by their paths; ones where theirs has none.

    Theirs may scale queries as well. Without rotation between, (s q) k = q (s k): the keys' scales
    take theirs in.

    Raises:
      UserError: where the adapter has what ours have not.
    """
    known = matrices(config, family)
    scaled = {path: s for path, s in known.items() if ends_with(path, _SCALED)}
    queries = {path: s for path, s in known.items() if path[-1] == "query"}
    turned = config.model.position_embedding == "rotary" or config.model.qk_norm
    flat = {}
    for path, source in scaled.items():
        _check_side(tensors, family, path, source)
        scale = _scale(tensors, family, source)
        query = None
        if path[-1] == "key":
            query = _scale(tensors, family, queries[(*path[:-1], "query")])
        if query is not None and not np.all(query == 1):
            if turned or (scale is not None and scale.shape != query.shape):
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
    tensors: Mapping[str, Any], family: Family, path: tuple[str, ...], source: Source
) -> None:
    """Raises UserError where a matrix is scaled on its other side: in peft, feedforward_modules are
    scaled in what they read, [1, n], and the others in what they give, [n, 1].
    """
    inner = ends_with(path, _INNER)
    for name in _names(family, source):
        if name in tensors and tensors[name].shape[0 if inner else -1] != 1:
            side = ("gives", "reads") if inner else ("reads", "gives")
            raise UserError(
                f"it scales what {name.removeprefix(OUTER).removesuffix('.ia3_l')} {side[0]}, and "
                f"here that is what it {side[1]}; see feedforward_modules"
            )


def _scale(tensors: Mapping[str, Any], family: Family, source: Source) -> np.ndarray | None:
    """The scales of one of our matrices, [...] or [layers, ...]; of a joint one, its part."""
    names = _names(family, source)
    if any(name not in tensors for name in names):
        return None
    k, parts = source.view.part
    scales = [np.split(tensors[name].reshape(-1), parts)[k] for name in names]
    return np.stack(scales) if source.stacked else scales[0]


def _names(family: Family, source: Source) -> list[str]:
    """The tensors of one of our matrices, of every layer that is stacked in it."""
    return [f"{OUTER}{module(family, tensor)}.ia3_l" for tensor in source.names]


def _ones(path: tuple[str, ...], source: Source, config: Config) -> np.ndarray:
    ours = explicit(config)
    size = ours["model.num_kv_heads"] * ours["model.head_dim"]
    size = ours["model.mlp_dim"] if ends_with(path, _INNER) else size
    return np.ones((len(source.names), size) if source.stacked else size, np.float32)
