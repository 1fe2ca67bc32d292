"""Which tensor went wrong first? Looks through one step's tensors in the order of computation."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.step import Program, Rows, objective_key


def first_nonfinite(program: Program, params: Any, rows: Rows, key: jax.Array) -> str:
    """Names the first tensor of a step with an infinity or a NaN, and how much of it is bad.

    Looks at parameters, then outputs of modules in the order in which they finish, then gradients.
    Runs the forward pass outside jit, where that order is known.
    """
    found = _first("parameter", params)
    batch = program.objective(rows, objective_key(key))
    if found is None:
        rngs = {"dropout": jax.random.fold_in(key, 0), "softmax": jax.random.fold_in(key, 1)}
        _, variables = program.model.apply(
            {"params": params},
            batch,
            method="loss",
            rngs=rngs,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        found = _first("output of", variables["intermediates"])
    if found is None:
        grads = jax.grad(lambda params: program.loss(params, batch, key)[0])(params)
        found = _first("gradient of", grads)
    return found or "the sum of the gradient's squares (all its elements are finite)"


def _first(kind: str, tree: Any) -> str | None:
    for path, leaf in _walk(tree):
        bad = int(jnp.sum(~jnp.isfinite(leaf)))
        if bad:
            return f"{kind} {'/'.join(path)} {list(leaf.shape)}, {bad} of {leaf.size} elements"
    return None


def _walk(tree: Any, path: tuple[str, ...] = ()):
    """Leaves in insertion order, which is the order of computation; jax.tree would sort by name."""
    if isinstance(tree, dict):
        for name, child in tree.items():
            yield from _walk(child, path if name == "__call__" else (*path, name))
    elif isinstance(tree, tuple):
        for child in tree:
            yield from _walk(child, path)
    elif jnp.issubdtype(tree.dtype, jnp.floating):
        yield path, tree
