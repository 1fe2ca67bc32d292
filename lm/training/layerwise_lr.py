"""Scales learning rates by layer, and unfreezes layers one after another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.model.config import StackConfig


def depths(params: optax.Params, layers: int) -> Any:
    """How far each parameter is from the words: a number, or one for every scanned layer.

    0 for embeddings, i + 1 for the i-th of L blocks of a stack, and L + 1 for all that comes after.
    One block that stands for all L is as far as the first.
    """

    def depth(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        names = [key.key for key in path]
        embeds = names[0] in ("embedding", "inputs", "encoder_inputs")
        if embeds or names[-1] == "relative_position":
            return 0
        if names[0] not in ("stack", "encoder") or names[1] == "final_norm":
            return layers + 1
        if names[1] == "layers":
            # Where the first are frozen, the last are here.
            own = np.arange(layers - leaf.shape[0], layers) + 1
            return own.reshape(-1, *(1,) * (leaf.ndim - 1))
        return int(names[1].removeprefix("layer_")) + 1 if names[1] != "shared_layer" else 1

    return jax.tree_util.tree_map_with_path(depth, params)


def layer_decay(
    tx: optax.GradientTransformation, decay: float, layers: int
) -> optax.GradientTransformation:
    """Updates of a tx, times decay^(L + 1 - depth): what comes last learns at the full rate.

    Discriminative fine-tuning (1801.06146), with the rates of ELECTRA (2003.10555). Decoupled
    weight decay, a part of the update, is scaled too.
    """

    def scale(updates: optax.Updates, params: optax.Params | None = None) -> Any:
        del params
        return jax.tree.map(
            lambda u, d: u * jnp.asarray(decay ** (layers + 1 - d), u.dtype),
            updates,
            depths(updates, layers),
        )

    return optax.chain(tx, optax.stateless(scale))


def shared_layer_rate(decay: float, stack: StackConfig) -> str:
    """Says at which rate a layer that stands for all learns; "" where it learns as the rest."""
    if decay == 1.0 or not stack.share_layers:
        return ""
    rate = decay**stack.num_layers
    return f"; the shared layer learns at {decay}^{stack.num_layers} = {rate:.3g} of the rate"


class Unfreezing(NamedTuple):
    """Updates made, and the state of the transformation within."""

    num_updates: jax.Array
    inner: optax.OptState


def unfreezing(
    tx: optax.GradientTransformation, every: int, layers: int
) -> optax.GradientTransformation:
    """Applies `tx`, and no update to what lies deeper than depth L + 1 - floor(updates / every).

    Gradual unfreezing (1801.06146): first what comes after the blocks learns, then one block more
    after every so many updates, the embeddings last. Gradients are computed all the same.
    """

    def awake(tree: optax.Updates, count: jax.Array) -> Any:
        lowest = layers + 1 - count // every
        return jax.tree.map(
            lambda x, d: jnp.where(d >= lowest, x, jnp.zeros_like(x)), tree, depths(tree, layers)
        )

    def init(params: optax.Params) -> Unfreezing:
        return Unfreezing(jnp.zeros((), jnp.int32), tx.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[Any, Unfreezing]:
        updates, inner = tx.update(awake(updates, state.num_updates), state.inner, params)
        return awake(updates, state.num_updates), Unfreezing(state.num_updates + 1, inner)

    return optax.GradientTransformation(init, update)
