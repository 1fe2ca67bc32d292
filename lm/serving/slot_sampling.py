"""Samples the next token of every slot, each with options of its own, in one compiled program."""

import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.generation.sample import FLOAT32_TINY, ROUNDING, SamplingParams, keep_first

TOP = 20  # likeliest tokens that a step reports


@flax.struct.dataclass
class SlotSampling:
    """The options of `SamplingParams` as arrays, [B] or of one slot [].

    Attributes:
      temperature: float32.
      top_k: int32; 0: all tokens.
      top_p: float32, less the error of rounding; 1 or more: all tokens.
      log_min_p: float32; -inf: all tokens.
      unmodified: tokens come from the model's own distribution.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    log_min_p: jax.Array
    unmodified: jax.Array


class Drawn(NamedTuple):
    """What a step gives: of each slot the token, its log-probability in nats before temperature
    and filters, and the `TOP` likeliest tokens with theirs.
    """

    token: jax.Array  # [B]; -1 where the model's probabilities are NaN
    log_prob: jax.Array  # [B]
    top_tokens: jax.Array  # [B, TOP]
    top_log_probs: jax.Array  # [B, TOP]


def as_arrays(params: SamplingParams) -> SlotSampling:
    """The options of one slot."""
    least = math.log(params.min_p) - ROUNDING if params.min_p > 0.0 else -math.inf
    arrays: dict[str, Any] = {
        "temperature": np.float32(params.temperature),
        "top_k": np.int32(min(params.top_k, 2**31 - 1)),
        "top_p": np.float32(params.top_p - ROUNDING if params.top_p < 1.0 else 1.0),
        "log_min_p": np.float32(least),
        "unmodified": np.bool_(params.unmodified),
    }
    return SlotSampling(**arrays)


def sample_slots(log_probs: jax.Array, keys: jax.Array, options: SlotSampling) -> jax.Array:
    """A token for every slot, [B]: what `lm.generation.sample` draws with the slot's options.

    The vocabulary is sorted only where a slot has a top_k or top_p.

    Args:
      log_probs: [B, V].
      keys: [B], the random key of each token.
      options: arrays [B].
    """
    most = jnp.max(log_probs, axis=1, keepdims=True)
    # Greedy slots divide by 1, and their draw is not used.
    greedy = options.temperature < FLOAT32_TINY
    temperature = jnp.where(greedy, 1.0, options.temperature)[:, None]
    logits = jnp.where(log_probs == -jnp.inf, -jnp.inf, (log_probs - most) / temperature)
    filters = (options.top_k > 0) | (options.top_p < 1.0)
    kept = jax.lax.cond(
        jnp.any(filters),
        lambda: jax.vmap(_kept)(logits, options.top_k, options.top_p),
        lambda: jnp.ones(logits.shape, bool),
    )
    kept &= logits >= options.log_min_p[:, None]
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(kept, logits, -jnp.inf))
    tokens = jnp.where(greedy, jnp.argmax(log_probs, axis=1), drawn)
    return jnp.where(jnp.isnan(most[:, 0]), -1, tokens).astype(jnp.int32)


def describe_draw(log_probs: jax.Array, tokens: jax.Array) -> Drawn:
    """The tokens [B] drawn from log-probabilities [B, V], with what a client may ask of them."""
    chosen = jnp.take_along_axis(log_probs, jnp.maximum(tokens, 0)[:, None], axis=1)[:, 0]
    count = min(TOP, log_probs.shape[1])
    top_log_probs, top_tokens = jax.lax.top_k(log_probs, count)
    return Drawn(tokens, chosen, top_tokens.astype(jnp.int32), top_log_probs)


def _kept(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Boolean [V]: the tokens that top_k, and then top_p among these, keep."""
    size = logits.size
    order = jnp.sort(logits, descending=True)
    count = jnp.where((top_k > 0) & (top_k < size), top_k, size)
    order = jnp.where(jnp.arange(size) < count, order, -jnp.inf)
    sums = jnp.cumsum(jax.nn.softmax(order))
    nucleus = 1 + jnp.sum(sums[:-1] < top_p)
    count = jnp.where(top_p < 1.0, jnp.minimum(nucleus, count), count)
    return keep_first(logits, order[count - 1], count)
