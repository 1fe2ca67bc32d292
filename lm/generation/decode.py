"""How does a model continue prompts word by word? Keys and values are cached; several words are
decoded in one call of the device, in place in the same cache.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.generation.prompts import Prompts, arrange
from lm.generation.sample import Choice, request_keys, sample
from lm.model.transformer import Transformer
from lm.output.base import Head

TOKENS_PER_CALL = 16


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
    repeats: Sequence[int] | None = None,
    sources: Sequence[np.ndarray] | None = None,
    prefix: bool = False,
) -> Iterator[np.ndarray]:
    """Yields the next token of every prompt, [B], `tokens` times.

    Calls for the same model with the same shapes compile once. Heads that draw without all words'
    probabilities (adaptive, hierarchical, class_factored) do so where `temperature` is 1 and
    nothing is left out.

    Args:
      model, params: a decoder or an encoder-decoder, and its parameters.
      prompts: B arrays of token ids, not empty; lengths may differ.
      tokens: how many to generate.
      temperature, top_k, top_p, min_p: see `sample`.
      seed: of the draws. The n-th token of a prompt is drawn by a key of (seed, the prompt's and
        its source's tokens, how many equal prompts came before, n), whatever stands beside it.
      repeats: how many equal prompts came before each; None: among these.
      sources: of an encoder-decoder, B arrays of token ids that the encoder reads.
      prefix: the prompt's places see each other, as a prefix language model learned it.

    Raises:
      UserError: where the longest prompt and its continuation need more positions than there are,
        model or head generate nothing, an option is out of range, or the model's probabilities are
        no numbers.
    """
    choice = Choice(temperature, top_k, top_p, min_p)
    steps = min(TOKENS_PER_CALL, max(tokens - 1, 1))
    room = 1 + steps * -(-(tokens - 1) // steps)
    arranged = arrange(model, prompts, sources, tokens, room, prefix)
    given = [prompts] if sources is None else [prompts, sources]
    keys = request_keys(seed, list(zip(*given, strict=True)), repeats)
    static = (Same(model), choice)
    drawn, cache = _begin(*static, params, arranged, keys)
    yield _numbers(drawn)
    longest = arranged.inputs.shape[1]
    for offset in range(longest, longest + room - 1, steps):
        words, drawn, cache = _go_on(*static, steps, params, cache, arranged, drawn, offset, keys)
        yield from _numbers(words)[: longest + tokens - 1 - offset]


def _numbers(words: jax.Array) -> np.ndarray:
    numbers = np.asarray(words)
    check_finite(not (numbers < 0).any())
    return numbers


def check_finite(finite: bool) -> None:
    """Raises UserError where the model's probabilities of the next word are not all `finite`."""
    if not finite:
        raise UserError(
            "the model's probabilities of the next word are no numbers (NaN): its training went "
            "wrong before this checkpoint; choose an earlier one with --step"
        )


class Same:
    """A model as a static argument of `jax.jit`: equal to another where the object is the same."""

    def __init__(self, model: Transformer):
        """Holds the model."""
        self.model = model

    def __eq__(self, other: object) -> bool:
        """Whether the models are one."""
        return isinstance(other, Same) and self.model is other.model

    def __hash__(self) -> int:
        """As `__eq__` asks."""
        return id(self.model)


def forward(
    model: Transformer, params: Any, cache: Any, prompts: Prompts, inputs: jax.Array, offset: Any
) -> tuple[jax.Array, Any]:
    """Runs tokens [B, n] that stand at `offset`.

    Returns:
      What the head reads at the last of them, [B, D], and the cache that now holds them.
    """
    hidden, updated = model.apply(
        {"params": params} | ({} if cache is None else {"cache": cache}),
        prompts.batch(inputs, offset, fresh=cache is None),
        offset=offset,
        padding=prompts.padding,
        cache_length=prompts.padding.shape[1],
        method="head_inputs",
        mutable=["cache"],
    )
    return hidden[:, -1], updated["cache"]


def log_probs_of(model: Transformer, params: Any, hidden: jax.Array) -> jax.Array:
    """Log-probabilities [B, V] in nats of what the head reads."""
    found: Any = model.apply({"params": params}, hidden, method="word_log_probs")
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(same: Same, choice: Choice, params: Any, prompts: Prompts, keys: jax.Array):
    """The first words [B] and the cache."""
    offset = jnp.zeros((), jnp.int32)
    hidden, cache = forward(same.model, params, None, prompts, prompts.inputs, offset)
    return _draw(same.model, choice, params, hidden, keys, 0), cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4,))
def _go_on(same, choice, steps, params, cache, prompts, drawn, offset, keys):
    """The words [steps, B] that follow those drawn last, which stand at `offset`."""
    longest = prompts.inputs.shape[1]

    def one(carry, offset):
        drawn, cache = carry
        hidden, cache = forward(same.model, params, cache, prompts, drawn[:, None], offset)
        drawn = _draw(same.model, choice, params, hidden, keys, offset - longest + 1)
        return (drawn, cache), drawn

    (drawn, cache), words = jax.lax.scan(one, (drawn, cache), offset + jnp.arange(steps))
    return words, drawn, cache


def _draw(model, choice: Choice, params, hidden, keys, number) -> jax.Array:
    """The words [B] with this number among those that are generated."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    head = type(model.output_head())
    if choice.plain and head.sample is not Head.sample:

        def one(pair: Any) -> jax.Array:
            hidden, key = pair
            return model.apply({"params": params}, hidden[None], key, method="draw_words")[0]

        # One after the other: side by side, every branch of such a draw would be computed.
        return jax.lax.map(one, (hidden, keys))
    log_probs = log_probs_of(model, params, hidden)
    draw = functools.partial(sample, **vars(choice))
    return jax.vmap(draw)(log_probs, keys).astype(jnp.int32)
