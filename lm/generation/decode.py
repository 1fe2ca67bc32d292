"""Generates tokens by sampling, with cached keys and values, several in one call of the device."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.devices.hosts import to_host
from lm.errors import UserError
from lm.generation.prefill import forward, read_prompts, shared_length
from lm.generation.prompts import Prompts, pad_prompts
from lm.generation.sample import SamplingParams, request_keys, sample
from lm.model.transformer import Transformer
from lm.output.base import Head

TOKENS_PER_CALL = 16


def generate(
    model: Transformer,
    params: Mapping[str, Any],
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    repeats: Sequence[int] | None = None,
    sources: Sequence[np.ndarray] | None = None,
    prefix: bool = False,
) -> Iterator[np.ndarray]:
    """Yields the next token of every prompt, [B], `max_new_tokens` times.

    What all prompts begin with is read once (see `read_prompts`). Calls for the same model with the
    same shapes compile once. Heads that sample without the probabilities of all tokens (adaptive,
    hierarchical, class_factored) do so where `temperature` is 1 and no token is excluded.

    Args:
      model, params: a decoder or an encoder-decoder, and its parameters.
      prompts: B arrays of token ids, not empty; lengths may differ.
      max_new_tokens: how many tokens to generate.
      temperature, top_k, top_p, min_p: see `sample`.
      seed: the n-th token of a prompt is sampled with a key that is a function of (seed, the
        tokens of the prompt and its source, the number of equal prompts before it, n) alone.
      repeats: the number of equal prompts before each; None: counted among `prompts`.
      sources: of an encoder-decoder, B arrays of token ids that the encoder reads.
      prefix: prompt positions attend to each other, as in a prefix language model.

    Raises:
      UserError: where the longest prompt and its continuation need more positions than there are,
        model or head generate nothing, an option is out of range, or the model's probabilities are
        no numbers.
    """
    sampling = SamplingParams(temperature, top_k, top_p, min_p)
    steps = min(TOKENS_PER_CALL, max(max_new_tokens - 1, 1))
    capacity = 1 + steps * -(-(max_new_tokens - 1) // steps)
    padded = pad_prompts(model, prompts, sources, max_new_tokens, capacity, prefix)
    requests = [prompts] if sources is None else [prompts, sources]
    keys = request_keys(seed, list(zip(*requests, strict=True)), repeats)
    static = (StaticModel(model), sampling)
    shared = 0 if prefix or sources else shared_length(prompts)
    last, cache = _prefill(*static, shared, params, padded, keys)
    yield checked_tokens(last)
    longest = padded.inputs.shape[1]
    for offset in range(longest, longest + capacity - 1, steps):
        tokens, last, cache = _decode(*static, steps, params, cache, padded, last, offset, keys)
        yield from checked_tokens(tokens)[: longest + max_new_tokens - 1 - offset]


def checked_tokens(tokens: jax.Array) -> np.ndarray:
    """Tokens on the host; UserError where one was drawn from probabilities that are NaN."""
    ids = to_host(tokens)
    check_finite(not (ids < 0).any())
    return ids


def check_finite(finite: bool) -> None:
    """Raises UserError where the model's next-token probabilities are not all `finite`."""
    if not finite:
        raise UserError(
            "the model's next-token probabilities are NaN: its training diverged before this "
            "checkpoint; choose an earlier one with --step"
        )


class StaticModel:
    """A model as a static argument of `jax.jit`, compared by identity."""

    def __init__(self, model: Transformer):
        """Holds the model."""
        self.model = model

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same object."""
        return isinstance(other, StaticModel) and self.model is other.model

    def __hash__(self) -> int:
        """Consistent with `__eq__`."""
        return id(self.model)


def next_token_log_probs(
    model: Transformer, params: Mapping[str, Any], hidden: jax.Array
) -> jax.Array:
    """Log-probabilities [B, V] in nats, from inputs of the head [B, D]."""
    log_probs: Any = model.apply({"params": params}, hidden, method="token_log_probs")
    return log_probs


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(
    static: StaticModel,
    sampling: SamplingParams,
    shared: int,
    params: Mapping[str, Any],
    prompts: Prompts,
    keys: jax.Array,
) -> tuple[jax.Array, Any]:
    """The first new tokens [B] and the cache."""
    hidden, cache = read_prompts(static.model, params, prompts, shared)
    return sample_next(static.model, sampling, params, hidden, keys, 0), cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4,))
def _decode(
    static: StaticModel,
    sampling: SamplingParams,
    steps: int,
    params: Mapping[str, Any],
    cache: Mapping[str, Any],
    prompts: Prompts,
    last: jax.Array,
    offset: jax.Array,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
    """The next tokens [steps, B] after `last`, which stand at `offset`; the last, and the cache."""
    longest = prompts.inputs.shape[1]

    def step(carry: tuple[jax.Array, Any], offset: jax.Array) -> Any:
        last, cache = carry
        hidden, cache = forward(static.model, params, cache, prompts, last[:, None], offset)
        index = offset - longest + 1
        last = sample_next(static.model, sampling, params, hidden[:, -1], keys, index)
        return (last, cache), last

    (last, cache), tokens = jax.lax.scan(step, (last, cache), offset + jnp.arange(steps))
    return tokens, last, cache


def sample_next(
    model: Transformer,
    sampling: SamplingParams,
    params: Mapping[str, Any],
    hidden: jax.Array,
    keys: jax.Array,
    index: jax.Array | int,
) -> jax.Array:
    """The new tokens [B] with this index among those that are generated."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    head = type(model.output_head())
    if sampling.unmodified and head.sample is not Head.sample:

        def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            hidden, key = pair
            tokens: Any = model.apply({"params": params}, hidden[None], key, method="sample_tokens")
            return tokens[0]

        # One after the other: vmap would compute every branch of such a draw.
        return jax.lax.map(one, (hidden, keys))
    log_probs = next_token_log_probs(model, params, hidden)
    draw = functools.partial(sample, **vars(sampling))
    return jax.vmap(draw)(log_probs, keys).astype(jnp.int32)
