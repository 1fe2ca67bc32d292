"""The names of modules and tensors in peft, which are those of transformers."""

from collections.abc import Collection, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from lm.checkpoints.hf.family import Family
from lm.checkpoints.hf.tensor_mapping import ParamSource, param_sources
from lm.config import Config
from lm.errors import UserError
from lm.model.resolve import scans_layers

PEFT_PREFIX = "base_model.model."  # begins the names of all tensors that stand in a module


def kernel_sources(config: Config, family: Family) -> dict[tuple[str, ...], ParamSource]:
    """Where each kernel of a model stands in transformers, by the path of its layer."""
    found = {}
    for name, source in param_sources(family.mappings(config), config.model.num_layers).items():
        *path, kind = name.split("/")
        if kind == "kernel" and _is_model_path(path, config):
            found[tuple(path)] = source
    return found


def added_params(
    params: Mapping[str, Any], name: str, config: Config, family: Family
) -> dict[tuple[str, ...], tuple[ParamSource, dict[str, Any]]]:
    """Of every layer that has added parameters of this name, by its path: where its kernel stands
    in transformers, and these parameters.

    Raises:
      UserError: where transformers has no such matrix.
    """
    known, flat = kernel_sources(config, family), flatten_dict(params)
    found: dict[tuple[str, ...], tuple[ParamSource, dict[str, Any]]] = {}
    for path in sorted(flat):
        if name not in path[-2:-1]:
            continue
        layer = path[:-2]
        if layer not in known:
            name = "/".join(layer)
            raise UserError(f"transformers has no matrix for {name}; it cannot be written")
        found.setdefault(layer, (known[layer], {}))[1][path[-1]] = flat[path]
    return found


def module_name(family: Family, tensor: str) -> str:
    """The name of the module that has a tensor of transformers as its weight."""
    return family.full_name(tensor).removesuffix(".weight")


def check_all_read(tensors: Mapping[str, Any], read: Collection[str], family: Family) -> None:
    """Raises UserError where an adapter has tensors that were not read, or none."""
    if others := sorted(tensors.keys() - set(read)):
        raise UserError(
            f"it has {others[0].removeprefix(PEFT_PREFIX)}, which this {family.model_type} cannot "
            "hold; where layers are scanned, all of them have what one has: use "
            "config.model.scan=False"
        )
    if not tensors:
        raise UserError("it has no tensors; save it again")


def _is_model_path(path: list[str], config: Config) -> bool:
    """Whether the layers of a path are named as this model's are, one by one or stacked."""
    if path[0] not in ("stack", "encoder"):
        return True
    if config.model.share_layers:
        return path[1] == "shared_layer"
    return (path[1] == "layers") == scans_layers(config.model) and path[1] != "shared_layer"
