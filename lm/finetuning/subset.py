"""Which part of the parameters is trained? Splits their tree in two, of the same names, and joins
the two again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict


def split(params: Any, kept: Callable[[tuple[str, ...]], int | None]) -> tuple[Any, Any]:
    """(trained, frozen): two nested dictionaries that `join` puts together again.

    Args:
      params: nested dictionaries of arrays.
      kept: of a path, how many leading layers of the array are frozen; 0: it is trained whole;
        None: it is frozen whole. A part of an array stands under its name in both trees.
    """
    trained, frozen = {}, {}
    flat: Any = flatten_dict(params)
    for path, leaf in flat.items():
        first = kept(path)
        if first is None:
            frozen[path] = leaf
        elif first == 0:
            trained[path] = leaf
        else:
            frozen[path], trained[path] = leaf[:first], leaf[first:]
    return unflatten_dict(trained), unflatten_dict(frozen)


def join(trained: Any, frozen: Any) -> Any:
    """The whole tree of parameters; of an array in both, the frozen layers come first."""
    if not frozen:
        return trained
    ours: Any = flatten_dict(trained)
    theirs: Any = flatten_dict(frozen)
    both = {path: jnp.concatenate([theirs[path], ours[path]]) for path in ours.keys() & theirs}
    return unflatten_dict(theirs | ours | both)


def count(tree: Any) -> int:
    """How many numbers the arrays of a tree hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
