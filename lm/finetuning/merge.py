"""Merges adapters that are matrices or scales into their base, and takes them out again."""

from collections.abc import Callable, Mapping
from typing import Any

from lm.config import Config
from lm.errors import UserError
from lm.finetuning import METHODS, finetuning_config, method_names
from lm.finetuning.method import Path


def merge(config: Config, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a plain model that computes what the adapted one does.

    Raises:
      UserError: where no matrix of the base can hold what a method adds.
    """
    return _change(config, params, "merged")


def unmerge(
    config: Config, merged: Mapping[str, Any], adapters: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters of base and adapters again, up to rounding.

    Args:
      config: of the run with adapters.
      merged: what `merge` gave.
      adapters: their parameters (`TrainState.params`).

    Raises:
      UserError: where a method's merging has no inverse.
    """
    return _change(config, _overlaid(merged, adapters), "unmerged")


def _change(config: Config, params: Mapping[str, Any], method: str) -> Any:
    names = [name for name in method_names(config) if METHODS[name].adapter is not None]
    pairs = list(zip(names, finetuning_config(config).adapters, strict=True))
    # The last is the innermost, next to the matrix.
    for name, adapter in pairs[::-1] if method == "merged" else pairs:
        change = getattr(adapter, method, None)
        if change is None:
            done = "merged into its base" if method == "merged" else "taken out of its base again"
            raise UserError(f"what method {name} adds cannot be {done}; keep base and adapter")
        params = _walk(params, (), adapter.name, change)
    return params


def _walk(node: Any, path: Path, name: str, change: Callable[[Path, Any], Any]) -> Any:
    if not isinstance(node, dict):
        return node
    if name in node:
        return change(path, node)
    return {key: _walk(child, (*path, key), name, change) for key, child in node.items()}


def _overlaid(tree: Any, added: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    both = {key: _overlaid(tree[key], added.get(key, {})) for key in tree}
    return both | {key: child for key, child in added.items() if key not in tree}
