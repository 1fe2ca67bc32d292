"""Partitions a tree of parameters into trainable and frozen ones, and combines them again."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict


def partition(
    params: Mapping[str, Any], frozen_layers: Callable[[tuple[str, ...]], int | None]
) -> tuple[Any, Any]:
    """(trainable, frozen): two nested dictionaries, which `combine` makes one again.

    Args:
      params: nested dictionaries of arrays.
      frozen_layers: of a path, how many leading layers of the array are frozen; 0: none, None:
        all. An array that is frozen in part stands under its name in both trees.
    """
    trainable, frozen = {}, {}
    flat: Any = flatten_dict(params)
    for path, leaf in flat.items():
        first = frozen_layers(path)
        if first is None:
            frozen[path] = leaf
        elif first == 0:
            trainable[path] = leaf
        else:
            frozen[path], trainable[path] = leaf[:first], leaf[first:]
    return unflatten_dict(trainable), unflatten_dict(frozen)


def combine(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Mapping[str, Any]:
    """The whole tree of parameters; of an array in both, the frozen layers come first."""
    if not frozen:
        return trainable
    first: Any = flatten_dict(frozen)
    last: Any = flatten_dict(trainable)
    both = {path: jnp.concatenate([first[path], last[path]]) for path in first.keys() & last}
    return unflatten_dict(first | last | both)


def param_count(tree: optax.Params) -> int:
    """The number of elements in the arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
