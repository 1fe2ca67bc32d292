"""Continuations drawn from the model within a step of training, by its cache of keys and values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp

from lm.model.cached import cached_head_inputs
from lm.model.transformer import Batch, Transformer
from lm.training.train_state import Params

Cache = Mapping[str, Any]


@flax.struct.dataclass
class Rollouts:
    """N continuations of T tokens at most.

    Attributes:
      tokens: [N, P + T], prompts and continuations; behind END they mean nothing.
      written: [N, T] boolean, the tokens up to END, which is one of them.
    """

    tokens: jax.Array
    written: jax.Array

    @property
    def batch(self) -> Batch:
        """Rows [N, P + T - 1] in which each written token is a target of weight one."""
        inputs, targets = self.tokens[:, :-1], self.tokens[:, 1:]
        before = inputs.shape[1] - self.written.shape[1]
        weights = jnp.pad(self.written.astype(jnp.float32), ((0, 0), (before, 0)))
        rows = _rows(inputs, jnp.arange(inputs.shape[1]))
        return dataclasses.replace(rows, targets=targets, weights=weights)


def roll_out(
    model: Transformer, params: Params, prompts: jax.Array, key: jax.Array, new: int, end: int
) -> Rollouts:
    """Continues prompts [N, P] by `new` tokens each, drawn from the model's own distribution."""
    length = prompts.shape[1]
    padding = jnp.ones((len(prompts), length + new), bool)

    def forward(
        cache: Cache | None, inputs: jax.Array, offset: jax.Array
    ) -> tuple[jax.Array, Cache]:
        batch = _rows(inputs, offset + jnp.arange(inputs.shape[1]))
        hidden, updated = cached_head_inputs(model, params, cache, batch, offset, padding)
        return hidden[:, -1], updated

    def draw(hidden: jax.Array, index: jax.Array | int) -> jax.Array:
        log_probs = model.apply({"params": params}, hidden, method="token_log_probs")
        key_of_token = jax.random.fold_in(key, index)
        drawn = jax.random.categorical(key_of_token, cast(jax.Array, log_probs))
        return drawn.astype(prompts.dtype)

    def step(carry: tuple[jax.Array, Cache], index: jax.Array) -> tuple[Any, jax.Array]:
        last, cache = carry
        hidden, cache = forward(cache, last[:, None], length + index - 1)
        return (draw(hidden, index), cache), last

    hidden, cache = forward(None, prompts, jnp.zeros((), jnp.int32))
    (last, _), drawn = jax.lax.scan(step, (draw(hidden, 0), cache), jnp.arange(1, new))
    drawn = jnp.concatenate([drawn.T, last[:, None]], axis=1)
    ended = jnp.cumsum(drawn == end, axis=1) - (drawn == end)
    return Rollouts(jnp.concatenate([prompts, drawn], axis=1), ended == 0)


def _rows(inputs: jax.Array, positions: jax.Array) -> Batch:
    """Rows [N, L] of one document each."""
    ones = jnp.ones_like(inputs)
    return Batch(inputs, inputs, ones, ones, jnp.broadcast_to(positions, inputs.shape))
