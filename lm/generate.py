"""How does a model continue a prompt? Cached decoding, a token at a time for all prompts."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data import Tokenizer
from lm.errors import UserError
from lm.model import Batch, Transformer


def generate(
    model: Transformer,
    params: Any,
    prompts: Sequence[np.ndarray],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Yields the next token of every prompt, [B], `tokens` times.

    Args:
      model, params: a decoder and its parameters.
      prompts: B arrays of token ids, not empty; lengths may differ.
      tokens: how many to generate.
      temperature: divides the log-probabilities; 0 takes the likeliest token.
      top_k: keeps the k likeliest tokens; 0: all.
      top_p: keeps the likeliest tokens whose probabilities first sum to p (1904.09751); 1: all.
      min_p: keeps tokens at least this share as likely as the likeliest (2407.01082).
      seed: every prompt draws from its own stream of (seed, its place in the list).

    Raises:
      UserError: where the longest prompt and its continuation need more positions than there are.
    """
    longest = max(len(prompt) for prompt in prompts)
    length = longest + tokens
    if length > model.max_length:
        raise UserError(
            f"a prompt of {longest} tokens and {tokens} more need {length} positions, but the "
            f"model has config.model.max_length = {model.max_length}; ask for fewer"
        )
    size = len(prompts)
    # Prompts are aligned at their ends; the keys before their beginnings are padding.
    inputs = np.zeros((size, longest), np.int32)
    padding = np.ones((size, length), bool)
    for row, prompt in enumerate(prompts):
        inputs[row, longest - len(prompt) :] = prompt
        padding[row, : longest - len(prompt)] = False
    starts = longest - np.array([len(prompt) for prompt in prompts])
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(size))

    @jax.jit
    def advance(params: Any, cache: Any, inputs: jax.Array, offset: jax.Array):
        variables = {"params": params} | ({} if cache is None else {"cache": cache})
        places = offset + jnp.arange(inputs.shape[1]) - starts[:, None]
        batch = prompt_batch(inputs, jnp.maximum(places, 0))
        log_probs, updated = model.apply(
            variables,
            batch,
            offset=offset,
            padding=jnp.asarray(padding),
            cache_length=length,
            method="log_probs",
            mutable=["cache"],
        )
        drawn = jax.vmap(draw)(
            log_probs[:, -1], jax.vmap(jax.random.fold_in, (0, None))(keys, offset)
        )
        return drawn, updated["cache"]

    def draw(log_probs: jax.Array, key: jax.Array) -> jax.Array:
        return sample(log_probs, key, temperature, top_k, top_p, min_p)

    drawn, cache = advance(params, None, jnp.asarray(inputs), jnp.asarray(0))
    for offset in range(longest, length):
        yield np.asarray(drawn)
        if offset + 1 < length:
            drawn, cache = advance(params, cache, drawn[:, None], jnp.asarray(offset))


def prompt_batch(inputs: jax.Array, positions: jax.Array) -> Batch:
    """A batch [B, L] of one document a row, without targets."""
    ones = jnp.ones_like(inputs)
    return Batch(inputs=inputs, targets=inputs, weights=ones, segments=ones, positions=positions)


def sample(
    log_probs: jax.Array,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """Draws one token from log-probabilities [V]; see `generate`. The likeliest is always kept."""
    if temperature == 0.0:
        return jnp.argmax(log_probs)
    log_probs = jax.nn.log_softmax(log_probs / temperature)
    order = jnp.sort(log_probs, descending=True)
    floor = -jnp.inf
    if top_k:
        floor = jnp.maximum(floor, order[min(top_k, order.size) - 1])
    if top_p < 1.0:
        before = jnp.cumsum(jnp.exp(order)) - jnp.exp(order)
        floor = jnp.maximum(floor, order[jnp.maximum(jnp.sum(before < top_p), 1) - 1])
    if min_p > 0.0:
        floor = jnp.maximum(floor, order[0] + jnp.log(min_p))
    floor = jnp.minimum(floor, order[0])
    return jax.random.categorical(key, jnp.where(log_probs >= floor, log_probs, -jnp.inf))


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of prompts, each opened by the document token, as documents are in training."""
    encoded = tokenizer.encode_batch(list(prompts))
    return [np.concatenate([[tokenizer.end], ids]) for ids, _ in encoded]


def stream(
    tokenizer: Tokenizer, prompts: Sequence[str], tokens: Iterator[np.ndarray]
) -> Iterator[str]:
    """Yields printable pieces: the first text as it grows, then each other text whole.

    A text ends where the model closes the document.
    """
    drawn: list[list[int]] = [[] for _ in prompts]
    ended = np.zeros(len(prompts), bool)
    shown = ""
    yield prompts[0]
    for step in tokens:
        ended |= step == tokenizer.end
        for row in np.flatnonzero(~ended):
            drawn[row].append(int(step[row]))
        # The last character may still lack bytes; it is shown once it is whole.
        text = tokenizer.decode(np.array(drawn[0])).rstrip("\N{REPLACEMENT CHARACTER}")
        yield text[len(shown) :]
        shown = max(shown, text, key=len)
        if ended.all():
            break
    yield "\n"
    for prompt, ids in zip(prompts[1:], drawn[1:], strict=True):
        yield f"{'-' * 8}\n{prompt}{tokenizer.decode(np.array(ids))}\n"
