"""By which names does the package peft know our matrices? Those of transformers' modules."""

from collections.abc import Collection, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from lm.checkpoints.hf.family import Family
from lm.checkpoints.hf.view import Source, sources
from lm.config import Config
from lm.errors import UserError

OUTER = "base_model.model."  # begins the names of all tensors that stand in a module


def matrices(config: Config, family: Family) -> dict[tuple[str, ...], Source]:
    """Where each kernel of this model stands in theirs, by the path of its layer."""
    found = {}
    for name, source in sources(family.views(config), config.model.num_layers).items():
        *path, kind = name.split("/")
        if kind == "kernel" and _is_ours(path, config):
            found[tuple(path)] = source
    return found


def places(
    params: Any, name: str, config: Config, family: Family
) -> dict[tuple[str, ...], tuple[Source, dict[str, Any]]]:
    """Of every layer that has an addition of this name, by its path, where its kernel stands in
    theirs, and the addition's parameters.

    Raises:
      UserError: where transformers has no such matrix.
    """
    known, flat = matrices(config, family), flatten_dict(params)
    found: dict[tuple[str, ...], tuple[Source, dict[str, Any]]] = {}
    for path in sorted(flat):
        if name not in path[-2:-1]:
            continue
        layer = path[:-2]
        if layer not in known:
            raise UserError(
                f"transformers has no matrix for {'/'.join(layer)}; it cannot be written"
            )
        found.setdefault(layer, (known[layer], {}))[1][path[-1]] = flat[path]
    return found


def module(family: Family, tensor: str) -> str:
    """The name of the module that has a tensor of transformers as its weight."""
    inside = not tensor.startswith(family.outside) if family.outside else True
    return (family.prefix if inside else "") + tensor.removesuffix(".weight")


def check_all_read(tensors: Mapping[str, Any], read: Collection[str], family: Family) -> None:
    """Raises UserError where an adapter has tensors that were not read, or none."""
    if others := sorted(tensors.keys() - set(read)):
        raise UserError(
            f"it has {others[0].removeprefix(OUTER)}, which this {family.model_type} cannot hold; "
            "where layers are scanned, all of them have what one has"
        )
    if not tensors:
        raise UserError("it has no tensors; save it again")


def _is_ours(path: list[str], config: Config) -> bool:
    """Whether the layers of a path are named as this model's are, one by one or stacked."""
    if path[0] not in ("stack", "encoder"):
        return True
    if config.model.share_layers:
        return path[1] == "shared_layer"
    return (path[1] == "layers") == config.model.scan and path[1] != "shared_layer"
