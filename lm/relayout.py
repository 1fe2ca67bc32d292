"""Turns what was saved of layers one by one into stacked layers, and the reverse: config.model.scan
decides how they lie, and may change when a run goes on.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.partition import path_name

_ONE = re.compile(r"/layer_(\d+)/")
_ALL = "/layers/"


def lies_otherwise(saved: Collection[str], wanted: Collection[str]) -> bool:
    """Whether layers are stacked in one of two sets of names, and stand alone in the other."""
    stacked, single = (
        [any(_ALL in name for name in names), any(_ONE.search(name) for name in names)]
        for names in (saved, wanted)
    )
    return stacked == single[::-1] != single


def relaid(saved: Mapping[str, jax.Array], wanted: Any) -> Any:
    """The arrays of a state in the layout of another.

    Args:
      saved: arrays by the names of their paths, "params/stack/layer_0/..." or
        "params/stack/layers/...", the latter with an axis of layers in front. Where only the last n
        of the layers are saved, those are of the stack.
      wanted: the state's shapes, types and shardings.

    Raises:
      KeyError: one of `wanted` is not there.
    """
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    number: dict[str, int] = {}  # of layers, by name without the layer
    for path, _ in leaves:
        if found := _ONE.search(name := path_name(path)):
            key = _ONE.sub(_ALL, name)
            number[key] = max(number.get(key, 0), int(found[1]) + 1)
    single: dict[str, dict[int, jax.Array]] = {}
    for name, array in saved.items():
        if found := _ONE.search(name):
            single.setdefault(_ONE.sub(_ALL, name), {})[int(found[1])] = array

    def one(path: Any, leaf: Any) -> jax.Array:
        name = path_name(path)
        key, found = _ONE.sub(_ALL, name), _ONE.search(name)
        if found:
            value = saved[key][int(found[1]) - number[key]]
        elif name in single:
            value = jnp.stack([single[name][layer] for layer in sorted(single[name])])
        else:
            value = saved[name]
        return jax.device_put(value, leaf.sharding)

    return jax.tree_util.tree_map_with_path(one, wanted)
