"""Converts saved parameters between stacked layers and single ones. config.model.scan decides which
of the two layouts a model has, and may change when a run goes on.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.devices.sharding import path_name

_SINGLE = re.compile(r"/layer_(\d+)/")
_STACKED = "/layers/"


def named_leaves(tree: object) -> dict[str, Any]:
    """The leaves of a tree by the names of their paths."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def layouts_differ(saved: Collection[str], wanted: Collection[str]) -> bool:
    """Whether layers are stacked in one of two sets of names, and single in the other."""
    stacked, single = (
        [any(_STACKED in name for name in names), any(_SINGLE.search(name) for name in names)]
        for names in (saved, wanted)
    )
    return stacked == single[::-1] != single


def to_layout(saved: Mapping[str, jax.Array], wanted: Any) -> Any:
    """The arrays of a state in the layout of another; see `params_in_layout`.

    Args:
      saved: arrays by the names of their paths.
      wanted: the state's shapes, types and shardings.

    Raises:
      KeyError: one of `wanted` is not there.
    """
    found = params_in_layout(saved, named_leaves(wanted))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(found[path_name(path)], leaf.sharding), wanted
    )


def params_in_layout(
    saved: Mapping[str, jax.Array], names: Collection[str]
) -> dict[str, jax.Array]:
    """Those of `names` that are among the saved arrays, in either layout.

    Names are "params/stack/layer_0/..." or "params/stack/layers/...", the latter of arrays with an
    axis of layers in front. Where only the last n of the layers are saved, those are of the stack.
    """
    number: dict[str, int] = {}  # of layers, by name without the layer
    for name in names:
        if one := _SINGLE.search(name):
            key = _SINGLE.sub(_STACKED, name)
            number[key] = max(number.get(key, 0), int(one[1]) + 1)
    single: dict[str, dict[int, jax.Array]] = {}
    for name, array in saved.items():
        if one := _SINGLE.search(name):
            single.setdefault(_SINGLE.sub(_STACKED, name), {})[int(one[1])] = array
    found = {}
    for name in names:
        key, one = _SINGLE.sub(_STACKED, name), _SINGLE.search(name)
        if name in saved:
            found[name] = saved[name]
        elif one and key in saved:
            found[name] = saved[key][int(one[1]) - number[key]]
        elif name in single:
            found[name] = jnp.stack([single[name][layer] for layer in sorted(single[name])])
    return found
