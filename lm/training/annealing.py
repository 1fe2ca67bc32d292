"""Moves an option of a softmax along a straight line while its model trains. It is a parameter that
no gradient moves, so that evaluation, generation and every checkpoint have the value of their step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.scores import ANNEALED
from lm.config import Config
from lm.model.resolve import attention_groups


def anneal(config: Config, params: Mapping[str, Any], step: jax.Array) -> Mapping[str, Any]:
    """The parameters, annealed options among them at their value after so many updates."""
    schedules = {name: group.anneal for name, group in attention_groups(config).items()}
    if not any(schedules.values()):
        return params

    def moved(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        if not names[-1].startswith(ANNEALED):
            return leaf
        group = "encoder_attention" if names[0] == "encoder" else "attention"
        group = "cross_attention" if "cross_attention" in names else group
        return jnp.full_like(leaf, value_at(schedules[group], step))

    return jax.tree_util.tree_map_with_path(moved, params)


def value_at(schedule: Sequence[Any], step: jax.Array | int) -> jax.Array:
    """Of (option, first, last, steps): first + (last - first) * min(step / steps, 1)."""
    _, first, last, steps = schedule
    return first + (last - first) * jnp.minimum(step / steps, 1.0)
