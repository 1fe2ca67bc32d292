"""Moves an option of a softmax along a straight line while its model trains. It is a parameter that
no gradient moves, so that evaluation, generation and every checkpoint have the value of their step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lm.attention.scores import ANNEALED
from lm.model.config import ModelConfig


def anneal(config: ModelConfig, params: Mapping[str, Any], step: jax.Array) -> Mapping[str, Any]:
    """The parameters, annealed options among them at their value after so many updates."""

    def moved(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        if not names[-1].startswith(ANNEALED):
            return leaf
        stack = config.encoder if names[0] == "encoder" and config.encoder else config.stack
        own, cross = stack.block.attention, stack.block.cross_attention
        attention = cross if "cross_attention" in names and cross else own
        return jnp.full_like(leaf, value_at(attention.anneal, step))

    return jax.tree_util.tree_map_with_path(moved, params)


def value_at(schedule: Sequence[Any], step: jax.Array | int) -> jax.Array:
    """Of (option, first, last, steps): first + (last - first) * min(step / steps, 1)."""
    _, first, last, steps = schedule
    return first + (last - first) * jnp.minimum(step / steps, 1.0)
