"""Beam search: finds continuations of high total log-probability."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.devices.hosts import to_host
from lm.errors import UserError
from lm.generation.decode import StaticModel, check_finite, next_token_log_probs
from lm.generation.prefill import forward, read_prompts, rows_axis, shared_length
from lm.generation.prompts import Prompts, pad_prompts
from lm.model.transformer import Transformer

_MAX_CANDIDATES = 2**31 - 1  # candidates are numbered in int32
_MAX_EXPONENT = 88.0  # exp of more overflows float32


class BeamSearchResult(NamedTuple):
    """The best continuations of B prompts, W each, best first.

    Attributes:
      tokens: [B, W, T] token ids.
      lengths: [B, W], how many of them count, including the end-of-text token.
      scores: [B, W]; see `beam_search`. -inf where there are fewer than W.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray

    def best(self, eos_token_id: int) -> np.ndarray:
        """The best continuation of each prompt, [B, T], padded with the end-of-text token."""
        positions = np.arange(self.tokens.shape[2])
        return np.where(positions < self.lengths[:, :1], self.tokens[:, 0], eos_token_id)


def beam_search(
    model: Transformer,
    params: Mapping[str, Any],
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    num_beams: int,
    eos_token_id: int,
    length_penalty: float = 0.0,
    sources: Sequence[np.ndarray] | None = None,
    prefix: bool = False,
) -> BeamSearchResult:
    """The continuations y of the highest score log p(y) / ((5 + |y|) / 6)^a that beams find.

    (Wu et al. 2016, 1609.08144.) Of all extensions of the W beams by a token, the 2 W likeliest
    are candidates: those among the first W that end the text are finished hypotheses; the first W
    others are the new beams. Texts without an end after T tokens are scored as they are. A row
    stops when it has W finished hypotheses and no beam can still score higher. With W = 1 and
    a = 0 the result is greedy decoding.

    Args:
      model, params, prompts, sources, prefix: as for `generate`.
      max_new_tokens: T, the longest continuation.
      num_beams: W, at least 1.
      eos_token_id: id of the token that ends a text.
      length_penalty: a, at least 0: 0 compares log-probabilities; more prefers longer texts.

    Raises:
      UserError: as `generate`; where `num_beams` or `length_penalty` are out of range.
    """
    check_beam_search(num_beams, length_penalty, max_new_tokens)
    if (candidates := num_beams * model.vocab_size) > _MAX_CANDIDATES:
        raise UserError(
            f"{num_beams} beams of {model.vocab_size} tokens have {candidates} candidates, more "
            f"than {_MAX_CANDIDATES}; use at most {_MAX_CANDIDATES // model.vocab_size} beams"
        )
    padded = pad_prompts(model, prompts, sources, max_new_tokens, max_new_tokens, prefix)
    shared = 0 if prefix or sources else shared_length(prompts)
    options = max_new_tokens, num_beams, eos_token_id, length_penalty, shared
    found = _search(StaticModel(model), *options, params, padded)
    result = BeamSearchResult(*map(to_host, found))
    check_finite(not np.isnan(result.scores).any())
    return result


def beam_search_steps(
    model: Transformer, params: Mapping[str, Any], *, eos_token_id: int, **options: Any
) -> Iterator[np.ndarray]:
    """Yields the next token of every prompt's best continuation, [B]; see `beam_search`."""
    result = beam_search(model, params, eos_token_id=eos_token_id, **options)
    yield from result.best(eos_token_id).T


def check_beam_search(num_beams: int, length_penalty: float, max_new_tokens: int) -> None:
    """Raises UserError where the options of a search of so many tokens are out of range."""
    if num_beams < 1 or not length_penalty >= 0:
        raise UserError(
            f"{num_beams} beams with length penalty {length_penalty}: use at least 1 and at least 0"
        )
    limit = _MAX_EXPONENT / max(math.log((5 + max_new_tokens) / 6), math.log(7 / 6))
    if length_penalty > limit:
        raise UserError(
            f"length penalty {length_penalty} of {max_new_tokens} tokens overflows float32; "
            f"use at most {limit:.1f}"
        )


class _Beams(NamedTuple):
    """The state of a search: W beams of each row, and the finished hypotheses."""

    step: jax.Array
    tokens: jax.Array  # [B, W, T]
    log_p: jax.Array  # [B, W]
    finished: tuple[jax.Array, jax.Array, jax.Array]  # tokens, lengths, scores
    next_log_p: jax.Array  # log-probabilities of the next token, [B, W, V]
    cache: Mapping[str, Any]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _search(
    static: StaticModel,
    max_new_tokens: int,
    num_beams: int,
    eos_token_id: int,
    penalty: float,
    shared: int,
    params: Mapping[str, Any],
    prompts: Prompts,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    model, (size, longest) = static.model, prompts.inputs.shape
    hidden, cache = read_prompts(model, params, prompts, shared)
    axis = rows_axis(model)
    cache = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=axis), cache)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), prompts)

    def score(log_p: jax.Array, length: jax.Array | float) -> jax.Array:
        return log_p / ((5.0 + length) / 6.0) ** penalty

    def continues(state: _Beams) -> jax.Array:
        # The longest text has the best score that a beam's log-probability can still reach.
        bound = score(jnp.max(state.log_p, axis=1), max_new_tokens)
        return (state.step < max_new_tokens) & jnp.any(bound > jnp.min(state.finished[2], axis=1))

    def extend(state: _Beams) -> _Beams:
        step, vocab_size = state.step, state.next_log_p.shape[-1]
        candidates = (state.log_p[:, :, None] + state.next_log_p).reshape(size, -1)
        log_p, index = jax.lax.top_k(candidates, min(2 * num_beams, candidates.shape[1]))
        beam, token = index // vocab_size, (index % vocab_size).astype(jnp.int32)
        tokens = jnp.take_along_axis(state.tokens, beam[:, :, None], axis=1)
        tokens = tokens.at[:, :, step].set(token)
        ends = token == eos_token_id
        first = jnp.arange(ends.shape[1]) < num_beams
        ended = jnp.where(ends & first, score(log_p, step + 1.0), -jnp.inf)
        finished = _best(num_beams, state.finished, (tokens, jnp.full_like(token, step + 1), ended))

        log_p, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, log_p), num_beams)
        tokens = jnp.take_along_axis(tokens, kept[:, :, None], axis=1)
        parents = jnp.take_along_axis(beam, kept, axis=1) + num_beams * jnp.arange(size)[:, None]
        cache = jax.tree.map(lambda x: jnp.take(x, parents.ravel(), axis=axis), state.cache)
        last = tokens[:, :, step].reshape(-1, 1)
        hidden, cache = forward(model, params, cache, repeated, last, longest + step)
        next_log_p = next_token_log_probs(model, params, hidden[:, -1]).reshape(size, num_beams, -1)
        return _Beams(step + 1, tokens, log_p, finished, next_log_p, cache)

    shape = size, num_beams
    empty = jnp.zeros((*shape, max_new_tokens), jnp.int32)
    finished = empty, jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf)
    # All beams start alike, so only the first counts.
    log_p = jnp.broadcast_to(jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf), shape)
    next_log_p = next_token_log_probs(model, params, hidden)
    next_log_p = jnp.repeat(next_log_p[:, None], num_beams, axis=1)
    start = _Beams(jnp.zeros((), jnp.int32), empty, log_p, finished, next_log_p, cache)
    last = jax.lax.while_loop(continues, extend, start)
    lengths = jnp.full(shape, last.step)
    # Beams left when no row could still improve are not candidates.
    reached = last.step == max_new_tokens
    open_scores = jnp.where(reached, score(last.log_p, last.step), -jnp.inf)
    tokens, lengths, scores = _best(num_beams, last.finished, (last.tokens, lengths, open_scores))
    # NaN ends a search at once, and the finished hypotheses do not show it.
    failed = jnp.isnan(last.next_log_p).any(axis=(1, 2))
    return tokens, lengths, jnp.where(failed[:, None], jnp.nan, scores)


def _best(
    number: int, *candidates: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best of candidates (tokens, lengths, scores), the earlier of equals first."""
    tokens, lengths, scores = (jnp.concatenate(x, axis=1) for x in zip(*candidates, strict=True))
    scores, chosen = jax.lax.top_k(scores, number)
    tokens = jnp.take_along_axis(tokens, chosen[:, :, None], axis=1)
    return tokens, jnp.take_along_axis(lengths, chosen, axis=1), scores
