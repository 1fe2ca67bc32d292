"""Turns what was saved of layers one by one into stacked layers, and the reverse: config.model.scan
decides how they lie, and may change when a run goes on.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.devices.sharding import path_name

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
    """The arrays of a state in the layout of another; see `found_in`.

    Args:
      saved: arrays by the names of their paths.
      wanted: the state's shapes, types and shardings.

    Raises:
      KeyError: one of `wanted` is not there.
    """
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    found = found_in(saved, [path_name(path) for path, _ in leaves])
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(found[path_name(path)], leaf.sharding), wanted
    )


def found_in(saved: Mapping[str, jax.Array], names: Collection[str]) -> dict[str, jax.Array]:
    """Those of `names` that are among the saved arrays, in either layout.

    Names are "params/stack/layer_0/..." or "params/stack/layers/...", the latter of arrays with an
    axis of layers in front. Where only the last n of the layers are saved, those are of the stack.
    """
    number: dict[str, int] = {}  # of layers, by name without the layer
    for name in names:
        if one := _ONE.search(name):
            key = _ONE.sub(_ALL, name)
            number[key] = max(number.get(key, 0), int(one[1]) + 1)
    single: dict[str, dict[int, jax.Array]] = {}
    for name, array in saved.items():
        if one := _ONE.search(name):
            single.setdefault(_ONE.sub(_ALL, name), {})[int(one[1])] = array
    found = {}
    for name in names:
        key, one = _ONE.sub(_ALL, name), _ONE.search(name)
        if name in saved:
            found[name] = saved[name]
        elif one and key in saved:
            found[name] = saved[key][int(one[1]) - number[key]]
        elif name in single:
            found[name] = jnp.stack([single[name][layer] for layer in sorted(single[name])])
    return found
