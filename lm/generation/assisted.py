"""Speculative decoding: a small model drafts tokens, and the large one checks all of them at once;
what is drawn follows the large model's distribution exactly.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.finetuning.adapted import max_text_len_of
from lm.generation.decode import (
    TOKENS_PER_CALL,
    StaticModel,
    checked_tokens,
    next_token_log_probs,
    sample_next,
)
from lm.generation.prefill import forward, read_prompts, rows_axis, shared_length
from lm.generation.prompts import Prompts, pad_prompts
from lm.generation.sample import SamplingParams, filtered_logits, request_keys
from lm.model.transformer import Transformer

Cache = Mapping[str, Any] | None
# What a token's key is folded with, for each of the draws that it may need.
_DRAFT, _ACCEPT, _REPLACE = 1, 2, 3


class Assistant(NamedTuple):
    """A model that drafts for another of the same vocabulary and architecture.

    Attributes:
      model, params: the model and its parameters.
      num_tokens: K, how many tokens it drafts at a time, at least 1.
    """

    model: Transformer
    params: Mapping[str, Any]
    num_tokens: int


class AssistedDecoding:
    """Continues prompts as `generate` does, with an assistant's drafts.

    In a round the assistant draws K tokens x from its distribution q, one after the other. The
    model computes its own p at all of them at once. From the first on, each is accepted with
    probability min(1, p(x) / q(x)); in place of the first that is not, a token is drawn from
    max(p - q, 0), normalised, and after K accepted ones from p. So every token follows p, whatever
    q is (2211.17192, 2302.01318). p and q are the distributions that `sample` draws from, at
    temperature 0 the likeliest token: then the tokens are those of greedy decoding. Prompts accept
    different numbers of tokens, and each has a place of its own in the cache.

    The n-th token of a prompt is drawn with keys of what `generate` derives its key from, and of
    nothing else; the drawn text is another than without an assistant.

    Attributes:
      rounds: how many there were, of all prompts, without those of prompts that were complete.
      accepted: how many drafted tokens they accepted.
    """

    def __init__(
        self,
        model: Transformer,
        params: Mapping[str, Any],
        prompts: Sequence[np.ndarray],
        *,
        assistant: Assistant,
        max_new_tokens: int,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
        seed: int = 0,
        repeats: Sequence[int] | None = None,
        sources: Sequence[np.ndarray] | None = None,
        prefix: bool = False,
    ):
        """Takes what `generate` takes.

        Raises:
          UserError: as `generate`; where the assistant has another vocabulary or architecture, or
            too few positions.
        """
        check_assistant(model, assistant.model)
        drafted = min(assistant.num_tokens, max(max_new_tokens - 1, 1))
        given = prompts, sources, max_new_tokens
        self._prompts = pad_prompts(model, *given, max_new_tokens + drafted, prefix)
        needed = self._prompts.inputs.shape[1] + max_new_tokens
        if needed > (available := max_text_len_of(assistant.model)):
            raise UserError(
                f"prompt and continuation need {needed} positions, but the assistant has "
                f"{available} (its config.model.max_seq_len); use fewer tokens, or another one"
            )
        requests = [prompts] if sources is None else [prompts, sources]
        keys = request_keys(seed, list(zip(*requests, strict=True)), repeats)
        models = StaticModel(model), StaticModel(assistant.model)
        rounds = max(1, TOKENS_PER_CALL // (drafted + 1))
        self._static = models, sampling, drafted, rounds, max_new_tokens
        self._shared = 0 if prefix or sources else shared_length(prompts)
        self._params, self._keys = (params, assistant.params), keys
        self.rounds, self.accepted = 0, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the next token of every prompt, [B], `max_new_tokens` times."""
        *static, most = self._static
        arguments = self._params, self._prompts, self._keys
        state = _prefill(*static[:2], self._shared, *arguments)
        texts = checked_tokens(state.last)[:, None].tolist()
        told, known = 0, 1
        while True:
            for place in range(told, known):
                yield np.array([text[place] for text in texts], np.int32)
            if known == most:
                return
            tokens, counts, state = _decode(*static, most, *arguments, state)
            tokens, counts = checked_tokens(tokens), np.asarray(counts)
            for text, rows, numbers in zip(texts, tokens, counts, strict=True):
                self._extend(text, rows, numbers, most)
            told, known = known, min(map(len, texts))

    def _extend(self, text: list[int], tokens: np.ndarray, counts: np.ndarray, most: int) -> None:
        """Adds to a text what rounds drew for it: tokens [R, K + 1] and how many count, [R]."""
        for new, count in zip(tokens, counts.tolist(), strict=True):
            if len(text) < most:
                self.rounds, self.accepted = self.rounds + 1, self.accepted + count - 1
                text += new[: min(count, most - len(text))].tolist()

    def __str__(self) -> str:
        """How many of the drafted tokens were accepted."""
        drafted = self._static[2]
        if not self.rounds:
            return "no tokens drafted"
        return f"{self.accepted / self.rounds:.2f} of {drafted} drafted tokens accepted"


def check_assistant(model: Transformer, assistant: Transformer) -> None:
    """Raises UserError where a model cannot draft for another."""
    if (own := model.vocab_size) != (other := assistant.vocab_size):
        raise UserError(
            f"the assistant has a vocabulary of {other} tokens and the model one of {own}; use an "
            "assistant that was trained with the model's tokenizer"
        )
    if (own := model.config.architecture) != (other := assistant.config.architecture):
        raise UserError(f"the model is of architecture {own}, and the assistant of {other}")


class _State(NamedTuple):
    """What a round starts from, for each of B prompts.

    Attributes:
      offset: [B], the position in the cache of the newest token, whose keys are not there yet.
      last: [B], that token.
      previous: [B], the one before it, whose keys the assistant may lack.
      caches: of the model and of the assistant, [B, ...].
    """

    offset: jax.Array
    last: jax.Array
    previous: jax.Array
    caches: tuple[Cache, Cache]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(
    models: tuple[StaticModel, StaticModel],
    sampling: SamplingParams,
    shared: int,
    params: tuple[Mapping[str, Any], Mapping[str, Any]],
    prompts: Prompts,
    keys: jax.Array,
) -> _State:
    """Reads the prompts and draws the first token of each."""
    size, longest = prompts.inputs.shape
    (hidden, cache), (_, own_cache) = (
        read_prompts(each.model, own, prompts, shared)
        for each, own in zip(models, params, strict=True)
    )
    last = sample_next(models[0].model, sampling, params[0], hidden, keys, 0)
    caches = _rows_apart(models[0].model, cache), _rows_apart(models[1].model, own_cache)
    offset = jnp.full(size, longest, jnp.int32)
    return _State(offset, last, prompts.inputs[:, -1], caches)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=(8,))
def _decode(
    models: tuple[StaticModel, StaticModel],
    sampling: SamplingParams,
    drafted: int,
    rounds: int,
    max_new_tokens: int,
    params: tuple[Mapping[str, Any], Mapping[str, Any]],
    prompts: Prompts,
    keys: jax.Array,
    state: _State,
) -> tuple[jax.Array, jax.Array, _State]:
    """The new tokens of R rounds, [B, R, K + 1], how many of them count, [B, R], and the state."""
    longest = prompts.inputs.shape[1]
    (model, assistant), (own, others) = (each.model for each in models), params

    def logits(model: Transformer, params: Mapping[str, Any], hidden: jax.Array) -> jax.Array:
        """Of the distributions drawn from, [..., V], given inputs of the head [..., D]."""
        flat = next_token_log_probs(model, params, hidden.reshape(-1, hidden.shape[-1]))
        shaped = jax.vmap(functools.partial(filtered_logits, **vars(sampling)))(flat)
        return shaped.reshape(*hidden.shape[:-1], -1)

    def draft(state: _State) -> tuple[jax.Array, jax.Array, Cache]:
        """K tokens of the assistant, [B, K], their q, [B, K, V], and its cache."""

        def step(carry: tuple[Cache, jax.Array], index: jax.Array) -> Any:
            cache, inputs = carry
            place = state.offset + index + 1 - inputs.shape[1]
            hidden, cache = _forward_rows(assistant, others, cache, prompts, inputs, place)
            q = logits(assistant, others, hidden[:, -1])
            new = jax.vmap(_draw)(q, _keys(keys, state.offset + index + 1 - longest, _DRAFT))
            return (cache, new[:, None]), (new, q)

        # The first reads two tokens: where all drafts were accepted, the last is not in its cache.
        inputs = jnp.stack([state.previous, state.last], axis=1)
        carry, first = step((state.caches[1], inputs), jnp.zeros((), jnp.int32))
        (cache, _), later = jax.lax.scan(step, carry, jnp.arange(1, drafted))
        both = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, later)
        tokens, q = jax.tree.map(lambda x: x.swapaxes(0, 1), both)
        return tokens, q, cache

    def run_round(state: _State, _: None) -> tuple[_State, tuple[jax.Array, jax.Array]]:
        tokens, q, cache = draft(state)
        inputs = jnp.concatenate([state.last[:, None], tokens], axis=1)
        hidden, own_cache = _forward_rows(
            model, own, state.caches[0], prompts, inputs, state.offset
        )
        index = state.offset[:, None] + jnp.arange(1, drafted + 2) - longest
        chosen = [_keys(keys[:, None], index, kind) for kind in (_ACCEPT, _REPLACE)]
        accepted, new = jax.vmap(choose)(logits(model, own, hidden), q, tokens, *chosen)
        places = jnp.arange(drafted + 1)
        drawn = jnp.where(places == accepted[:, None], new[:, None], jnp.roll(inputs, -1, axis=1))
        drawn = jnp.where(places > accepted[:, None], 0, drawn)
        # A prompt that is complete waits for the others.
        offset = jnp.minimum(state.offset + accepted + 1, longest + max_new_tokens - 1)
        previous = jnp.take_along_axis(inputs, accepted[:, None], axis=1)[:, 0]
        last = jnp.maximum(new, 0)  # -1 where probabilities were NaN
        return _State(offset, last, previous, (own_cache, cache)), (drawn, accepted + 1)

    state, (tokens, counts) = jax.lax.scan(run_round, state, length=rounds)
    return tokens.swapaxes(0, 1), counts.swapaxes(0, 1), state


def choose(
    p: jax.Array, q: jax.Array, tokens: jax.Array, accept: jax.Array, replace: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How many drafted tokens of a text are accepted, and the token that follows them.

    A q that is NaN, of an assistant whose training diverged, is as if nothing had been drafted.

    Args:
      p: [K + 1, V], logits of the distributions to draw from, at each drafted token and behind.
      q: [K, V], those that the tokens were drawn from.
      tokens: [K].
      accept, replace: [K + 1] random keys, of each place.

    Returns:
      A number from 0 to K, and a token; -1 where p is NaN there.
    """
    p, q = jax.nn.softmax(p), jax.nn.softmax(q)
    places = jnp.arange(len(tokens))
    chances = jax.vmap(jax.random.uniform)(accept[:-1])
    # Not divided: where p is 0, nothing is accepted; where it is q or more, everything.
    passed = chances * q[places, tokens] < p[places, tokens]
    accepted = jnp.sum(jnp.cumprod(passed))
    own = p[accepted]
    left = jnp.maximum(own - jnp.pad(q, ((0, 1), (0, 0)))[accepted], 0.0)
    left = jnp.where(jnp.sum(left) > 0.0, left, own)  # rounding may leave nothing
    new = _draw(jnp.log(left), replace[accepted])
    return accepted, jnp.where(jnp.isnan(own).any(), -1, new)


def _draw(logits: jax.Array, key: jax.Array) -> jax.Array:
    return jax.random.categorical(key, logits).astype(jnp.int32)


def _keys(keys: jax.Array, index: jax.Array, kind: int) -> jax.Array:
    """The keys of draws of one kind for the new tokens with these indices."""
    fold = jnp.vectorize(
        lambda key, index: jax.random.fold_in(jax.random.fold_in(key, index), kind)
    )
    return fold(keys, index)


def _forward_rows(
    model: Transformer,
    params: Mapping[str, Any],
    cache: Cache,
    prompts: Prompts,
    inputs: jax.Array,
    offset: jax.Array,
) -> tuple[jax.Array, Any]:
    """`forward` with an offset for each row, [B], and a cache of `_rows_apart`."""

    def one(cache: Cache, row: Prompts, tokens: jax.Array, offset: jax.Array) -> Any:
        row = jax.tree.map(lambda x: x[None], row)
        hidden, cache = forward(model, params, cache, row, tokens[None], offset)
        return hidden[0], cache

    return jax.vmap(one)(cache, prompts, inputs, offset)


def _rows_apart(model: Transformer, cache: Cache) -> Cache:
    """B caches of one row each, with their axis in front."""
    axis = rows_axis(model)
    return jax.tree.map(lambda x: jnp.expand_dims(jnp.moveaxis(x, axis, 0), axis + 1), cache)
