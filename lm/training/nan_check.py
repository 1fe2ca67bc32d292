"""Finds the first tensor of a step that is not finite, in the order of computation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.training.loss import dropout_keys
from lm.training.program import Program
from lm.training.train_state import Rows, TrainState


def first_nonfinite(program: Program, state: TrainState, rows: Rows, key: jax.Array) -> str:
    """Names the first tensor of a step with an infinity or a NaN, and how much of it is bad.

    Looks at parameters, then outputs of modules in the order in which they finish, in a plain pass
    over the batch of the step of this key, then at the step's own loss and gradients.
    """
    batch = program.make_batch(rows, key)
    rngs = dropout_keys(key)
    capture: Any = {"capture_intermediates": True, "mutable": ["intermediates"]}

    def outputs(state, batch):
        variables = {"params": state.all_params}
        _, found = program.model.apply(variables, batch, method="loss", rngs=rngs, **capture)
        return found["intermediates"]

    def loss(state, batch):
        (nats, _), _ = program.loss_and_grad(state, batch, key)
        return {"loss": nats}

    def gradients(state, batch):
        return program.loss_and_grad(state, batch, key)[1]

    return (
        _first("parameter", lambda state, batch: state.all_params, state, batch)
        or _first("output of", outputs, state, batch)
        or _first("the step's", loss, state, batch)
        or _first("gradient of", gradients, state, batch)
        or "a penalty, or the sum of the gradient's squares (the loss and its gradient are finite)"
    )


def _first(kind: str, function: Callable[..., Any], *arguments: object) -> str | None:
    """The first tensor that is not finite of what a function gives."""
    named = []

    @jax.jit
    def bad(*arguments):
        # What jit returns is sorted by name; the order of computation is known while it traces.
        leaves = list(_walk(function(*arguments)))
        named[:] = [(path, leaf.shape, leaf.size) for path, leaf in leaves]
        return [jnp.sum(~jnp.isfinite(leaf)) for _, leaf in leaves]

    for count, (path, shape, size) in zip(bad(*arguments), named, strict=True):
        if count:
            return f"{kind} {'/'.join(path)} {list(shape)}, {count} of {size} elements"
    return None


def _walk(tree: object, path: tuple[str, ...] = ()):
    """Leaves in insertion order, which is the order of computation; jax.tree would sort by name."""
    if isinstance(tree, dict):
        for name, child in tree.items():
            yield from _walk(child, path if name == "__call__" else (*path, name))
    elif isinstance(tree, tuple):
        for child in tree:
            yield from _walk(child, path)
    else:
        arrays = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
        yield from ((path, leaf) for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.floating))
