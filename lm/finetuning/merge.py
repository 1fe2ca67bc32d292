"""Can what was learned become part of the base? Additions that are matrices or scales can, and be
taken out again.
"""

from typing import Any

from lm.config import Config
from lm.errors import UserError
from lm.finetuning import METHODS, method_names, tuning


def merge(config: Config, params: Any) -> Any:
    """The parameters of a plain model that does what the tuned one does.

    Raises:
      UserError: where a method adds what no matrix of the base can hold.
    """
    return _change(config, params, "merged")


def unmerge(config: Config, merged: Any, trained: Any) -> Any:
    """The tuned model's parameters again, base and additions, up to rounding.

    Args:
      config: of the tuned run.
      merged: what `merge` gave.
      trained: the additions (`State.params`).

    Raises:
      UserError: where a method's merging has no inverse.
    """
    return _change(config, _overlaid(merged, trained), "unmerged")


def _change(config: Config, params: Any, method: str) -> Any:
    pairs = list(zip(_adding(config), tuning(config).additions, strict=True))
    # The last is the innermost, next to the matrix.
    for name, addition in pairs[::-1] if method == "merged" else pairs:
        change = getattr(addition, method, None)
        if change is None:
            done = "merged into its base" if method == "merged" else "taken out of its base again"
            raise UserError(f"what method {name} adds cannot be {done}; keep base and addition")
        params = _walk(params, (), addition.name, change)
    return params


def _adding(config: Config) -> list[str]:
    return [name for name in method_names(config) if METHODS[name].adds is not None]


def _walk(node: Any, path: tuple[str, ...], name: str, change: Any) -> Any:
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
