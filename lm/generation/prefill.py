"""Reads prompts into a cache of keys and values; what all of them begin with is computed once."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.generation.prompts import Prompts
from lm.model.cached import cached_head_inputs
from lm.model.transformer import Transformer

# Shared tokens are counted in steps of so many: few programs are compiled.
_STEP = 32


def forward(
    model: Transformer,
    params: Mapping[str, Any],
    cache: Mapping[str, Any] | None,
    prompts: Prompts,
    inputs: jax.Array,
    offset: jax.Array,
) -> tuple[jax.Array, Any]:
    """Runs the model on tokens [B, n] at positions from `offset` of the cache.

    Returns:
      The inputs of the head at each of them, [B, n, D], and the updated cache.
    """
    batch = prompts.batch(inputs, offset, fresh=cache is None)
    return cached_head_inputs(model, params, cache, batch, offset, prompts.padding)


def shared_length(prompts: Sequence[np.ndarray]) -> int:
    """How many tokens `read_prompts` is to read once: a multiple of 32 of those that B prompts
    begin with, and not the whole of any; 0 for one prompt.
    """
    if len(prompts) < 2:
        return 0
    most = min(map(len, prompts)) - 1
    starts = np.stack([prompt[:most] for prompt in prompts])
    different = np.flatnonzero((starts != starts[0]).any(axis=0))
    return (int(different[0]) if len(different) else most) // _STEP * _STEP


def read_prompts(
    model: Transformer, params: Mapping[str, Any], prompts: Prompts, shared: int = 0
) -> tuple[jax.Array, Any]:
    """Runs a decoder, or an encoder-decoder, on prompts.

    With C shared tokens, these are read as one row, whose keys and values are copied to where each
    prompt has them in the cache; then the last P - C positions of all prompts are read. So B
    prompts cost C + B (P - C) positions in place of B P.

    Args:
      model, params: the model and its parameters.
      prompts: B prompts of at most P tokens.
      shared: C, what `shared_length` says; 0 also where prompt positions attend to later ones.

    Returns:
      The inputs of the head at the last token of each, [B, D], and the cache.
    """
    zero = jnp.zeros((), jnp.int32)
    if not shared:
        hidden, cache = forward(model, params, None, prompts, prompts.inputs, zero)
        return hidden[:, -1], cache
    tokens = jax.lax.dynamic_slice_in_dim(prompts.inputs[0], prompts.starts[0], shared)[None]
    one = Prompts(tokens, jnp.zeros(1, jnp.int32), jnp.ones(tokens.shape, bool))
    _, cache = forward(model, params, None, one, tokens, zero)
    size, axis = prompts.padding.shape[1], rows_axis(model)

    def copied(leaf: jax.Array, start: jax.Array) -> jax.Array:
        """A row's part of the cache; what stands elsewhere is not seen, or overwritten."""
        virtual = leaf.shape[-2] - shared
        places = virtual + jnp.clip(jnp.arange(size) - start, 0, shared - 1)
        places = jnp.concatenate([jnp.arange(virtual), places])
        return jnp.take(leaf.squeeze(axis), places, axis=-2)

    copies = jax.vmap(copied, in_axes=(None, 0), out_axes=axis)
    cache = jax.tree.map(lambda leaf: copies(leaf, prompts.starts), cache)
    rest = prompts.inputs[:, shared:]
    hidden, cache = forward(model, params, cache, prompts, rest, jnp.asarray(shared, jnp.int32))
    return hidden[:, -1], cache


def rows_axis(model: Transformer) -> int:
    """The axis of rows in the cache: layers that are scanned have an axis of layers before it."""
    return 1 if model.config.stack.scanned else 0
