"""Which continuation is likely as a whole? Beam search: the best few beginnings, word by word."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.attention.kv_cache import take_rows
from lm.errors import UserError
from lm.generation.decode import Same, check_finite, forward, log_probs_of
from lm.generation.prompts import Prompts, arrange
from lm.model.transformer import Transformer

_WAYS = 2**31 - 1  # that int32 can number
_LARGEST = 88.0  # whose exponential float32 can hold


class Found(NamedTuple):
    """The best continuations of B prompts, W each, best first.

    Attributes:
      tokens: [B, W, T] token ids.
      lengths: [B, W], how many of them count, the closing `end` among them.
      scores: [B, W]; see `search`. -inf where there are fewer than W.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray

    def best(self, end: int) -> np.ndarray:
        """The best continuation of each prompt, [B, T], `end` behind its own."""
        places = np.arange(self.tokens.shape[2])
        return np.where(places < self.lengths[:, :1], self.tokens[:, 0], end)


def search(
    model: Transformer,
    params: Any,
    prompts: Sequence[np.ndarray],
    *,
    tokens: int,
    width: int,
    end: int,
    length_penalty: float = 0.0,
    sources: Sequence[np.ndarray] | None = None,
    prefix: bool = False,
) -> Found:
    """The continuations y of the highest score log p(y) / ((5 + |y|) / 6)^a that beams find.

    (Wu et al. 2016, 1609.08144.) Of all ways to lengthen the W beams by a word, the 2 W likeliest
    are looked at: a way that ends, and is among the first W, is put aside; the first W others are
    the new beams. What has not ended after T words counts as it is. A row stops when it has put W
    aside and no beam can still do better. With W = 1 and a = 0 that is the greedy choice.

    Args:
      model, params, prompts, sources, prefix: as for `generate`.
      tokens: T, the longest continuation.
      width: W, at least 1.
      end: id of the token that closes a text.
      length_penalty: a, at least 0: 0 compares log-probabilities; more prefers longer texts.

    Raises:
      UserError: as `generate`; where `width` or `length_penalty` are out of range.
    """
    check_search(width, length_penalty, tokens)
    if width * model.vocab_size > _WAYS:
        raise UserError(
            f"{width} beams of {model.vocab_size} words are {width * model.vocab_size} ways to go "
            f"on, more than {_WAYS} can be numbered; use at most {_WAYS // model.vocab_size} beams"
        )
    arranged = arrange(model, prompts, sources, tokens, tokens, prefix)
    found = _search(Same(model), tokens, width, end, length_penalty, params, arranged)
    found = Found(*map(np.asarray, found))
    check_finite(not np.isnan(found.scores).any())
    return found


def search_steps(model: Transformer, params: Any, *, end: int, **options: Any) -> Iterator[Any]:
    """Yields the next token of every prompt's best continuation, [B]; see `search`."""
    yield from search(model, params, end=end, **options).best(end).T


def check_search(width: int, length_penalty: float, tokens: int) -> None:
    """Raises UserError where the options of a search of so many tokens are out of range."""
    if width < 1 or not length_penalty >= 0:
        raise UserError(
            f"{width} beams with length penalty {length_penalty}: use at least 1 and at least 0"
        )
    most = _LARGEST / max(math.log((5 + tokens) / 6), math.log(7 / 6))
    if length_penalty > most:
        raise UserError(
            f"length penalty {length_penalty} of {tokens} tokens is beyond what can be computed; "
            f"use at most {most:.1f}"
        )


class _Beams(NamedTuple):
    """The state of a search: W beams of each row, and what was put aside."""

    step: jax.Array
    tokens: jax.Array  # [B, W, T]
    log_p: jax.Array  # [B, W]
    aside: tuple[jax.Array, jax.Array, jax.Array]  # tokens, lengths, scores
    nats: jax.Array  # log-probabilities of the next word, [B, W, V]
    cache: Any


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _search(same: Same, limit: int, width: int, end: int, penalty: float, params, prompts: Prompts):
    model, size = same.model, prompts.inputs.shape[0]
    longest = prompts.inputs.shape[1]
    hidden, cache = forward(model, params, None, prompts, prompts.inputs, jnp.zeros((), jnp.int32))
    # Layers that are scanned keep their caches behind an axis of layers.
    axis = 1 if model.scan or model.share_layers else 0
    cache = take_rows(cache, jnp.repeat(jnp.arange(size), width), size, axis)
    many = jax.tree.map(lambda x: jnp.repeat(x, width, axis=0), prompts)

    def scored(log_p: jax.Array, length: Any) -> jax.Array:
        return log_p / ((5.0 + length) / 6.0) ** penalty

    def unfinished(state: _Beams) -> jax.Array:
        # The longest text has the best score that a beam's log-probability can still come to.
        hope = scored(jnp.max(state.log_p, axis=1), limit)
        return (state.step < limit) & jnp.any(hope > jnp.min(state.aside[2], axis=1))

    def lengthen(state: _Beams) -> _Beams:
        step, vocab_size = state.step, state.nats.shape[-1]
        ways = (state.log_p[:, :, None] + state.nats).reshape(size, -1)
        log_p, way = jax.lax.top_k(ways, min(2 * width, ways.shape[1]))
        beam, word = way // vocab_size, (way % vocab_size).astype(jnp.int32)
        tokens = jnp.take_along_axis(state.tokens, beam[:, :, None], axis=1)
        tokens = tokens.at[:, :, step].set(word)
        ends = word == end
        first = jnp.arange(ends.shape[1]) < width
        ending = jnp.where(ends & first, scored(log_p, step + 1.0), -jnp.inf)
        aside = _best(width, state.aside, (tokens, jnp.full_like(word, step + 1), ending))

        going = jnp.where(ends, -jnp.inf, log_p)
        log_p, kept = jax.lax.top_k(going, width)
        tokens = jnp.take_along_axis(tokens, kept[:, :, None], axis=1)
        parents = jnp.take_along_axis(beam, kept, axis=1) + width * jnp.arange(size)[:, None]
        cache = take_rows(state.cache, parents.ravel(), size * width, axis)
        words = tokens[:, :, step].reshape(-1, 1)
        hidden, cache = forward(model, params, cache, many, words, longest + step)
        nats = log_probs_of(model, params, hidden).reshape(size, width, -1)
        return _Beams(step + 1, tokens, log_p, aside, nats, cache)

    nothing = jnp.zeros((size, width, limit), jnp.int32)
    aside = nothing, jnp.zeros((size, width), jnp.int32), jnp.full((size, width), -jnp.inf)
    # All beams begin alike, so only the first counts.
    log_p = jnp.broadcast_to(jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf), (size, width))
    nats = jnp.repeat(log_probs_of(model, params, hidden)[:, None], width, axis=1)
    start = _Beams(jnp.zeros((), jnp.int32), nothing, log_p, aside, nats, cache)
    last = jax.lax.while_loop(unfinished, lengthen, start)
    lengths = jnp.full((size, width), last.step)
    # Beams that were left while no row could gain from them are no candidates.
    open_scores = jnp.where(last.step == limit, scored(last.log_p, last.step), -jnp.inf)
    tokens, lengths, scores = _best(width, last.aside, (last.tokens, lengths, open_scores))
    # NaN ends a search at once, so what was found does not show it.
    broken = jnp.isnan(last.nats).any(axis=(1, 2))
    return tokens, lengths, jnp.where(broken[:, None], jnp.nan, scores)


def _best(width: int, *candidates):
    """The best W of candidates (tokens, lengths, scores), the earlier of equals first."""
    tokens, lengths, scores = (jnp.concatenate(x, axis=1) for x in zip(*candidates, strict=True))
    scores, chosen = jax.lax.top_k(scores, width)
    tokens = jnp.take_along_axis(tokens, chosen[:, :, None], axis=1)
    return tokens, jnp.take_along_axis(lengths, chosen, axis=1), scores
