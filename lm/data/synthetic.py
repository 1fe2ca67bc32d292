"""A synthetic language: a Markov chain whose log-probabilities have a chosen rank and whose entropy
is computed, so that predictions can be compared with the true distribution.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm.data.tokenizer import CharacterTokenizer
from lm.errors import UserError

VERSION = 1  # raise it when the same name would mean another text
_MEAN_LENGTH = 1024  # words in a document
_TOGETHER = 1024  # documents that are drawn at a time


@dataclasses.dataclass(frozen=True)
class Language:
    """A Markov chain over V words, of which word 0 ends a document and begins the next.

    Word v is in state s = v mod S, and the next word depends on the state alone:

        log p(w | s) = u_s . w_w / sqrt(R - 2) * spread - lse_s + log(1 - 1/n)    (w > 0)
        log p(0 | s) = -log n,    n = 1024

    with u_s and w_w in R - 2 dimensions, independent and standard normal. The matrix [V, V] of
    these log-probabilities has rank R exactly: R - 2 from the products, one from the normaliser and
    one from word 0. A softmax over logits h W' expresses it from D = R - 1 features on, since
    logits are free up to a constant for each context (Yang et al. 1711.03953).

    Attributes:
      words: V.
      rank: R, at least 3 and at most S and V - 1.
      states: S, distinct rows of the matrix, at most V; None: 4 R, or V where that is less.
      spread: standard deviation of the logits, in nats; the entropy is about log V - spread^2 / 2.
      tokens: about how many are drawn.
      seed: of the vectors and of the draws.
    """

    words: int
    rank: int
    states: int | None = None
    spread: float = 2.0
    tokens: int = 2_000_000
    seed: int = 0

    def __post_init__(self):
        limits = {
            "words": (self.words, 4, 1_000_000),
            "rank": (self.rank, 3, min(self.size, self.words - 1)),
            "states": (self.size, 1, self.words),
            "spread": (self.spread, 0, 20),
            "tokens": (self.tokens, 1, 10**10),
            "seed": (self.seed, 0, 2**31 - 1),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise UserError(f"synthetic:{name}={value} must be from {low} to {high}")

    @property
    def size(self) -> int:
        """S."""
        return min(4 * self.rank, self.words) if self.states is None else self.states

    def state(self, words: np.ndarray) -> np.ndarray:
        """The states of words, of any shape."""
        return words % self.size

    @functools.cached_property
    def log_probs(self) -> np.ndarray:
        """The matrix of log p(w | s) in nats, float64 [S, V]."""
        chance = np.random.default_rng([self.seed, 0])
        inner = self.rank - 2
        contexts = chance.standard_normal((self.size, inner)) * self.spread / np.sqrt(inner)
        logits = contexts @ chance.standard_normal((self.words - 1, inner)).T
        top = logits.max(axis=1, keepdims=True)
        logits -= top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        logits += np.log1p(-1 / _MEAN_LENGTH)
        return np.concatenate([np.full((self.size, 1), -np.log(_MEAN_LENGTH)), logits], axis=1)

    @functools.cached_property
    def stationary(self) -> np.ndarray:
        """How often the chain is in each state, [S]: the solution of pi T = pi, sum pi = 1."""
        probabilities, states = np.exp(self.log_probs), np.arange(self.size)
        moves = np.stack([probabilities[:, s :: self.size].sum(axis=1) for s in states], axis=1)
        system = np.concatenate([moves.T - np.eye(self.size), np.ones((1, self.size))])
        return np.linalg.lstsq(system, np.append(np.zeros(self.size), 1.0), rcond=None)[0]

    @property
    def entropy(self) -> float:
        """The entropy rate sum_s pi_s H(p(. | s)), in nats per token: no model predicts better."""
        of_states = -np.sum(np.exp(self.log_probs) * self.log_probs, axis=1)
        return float(self.stationary @ of_states)

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """-log p of every token of rows [B, L + 1] but the first, given the one before: [B, L]."""
        return -self.log_probs[self.state(tokens[:, :-1]), tokens[:, 1:]]

    def documents(self) -> Iterator[np.ndarray]:
        """Draws documents without their ends, int [length] each, of 1,024 words on average."""
        cumulative = np.cumsum(np.exp(self.log_probs), axis=1)
        # One sorted row of all states' cumulative probabilities: state s lies in [s, s + 1).
        ladder = (cumulative / cumulative[:, -1:] + np.arange(self.size)[:, None]).ravel()
        number = -(-self.tokens // _MEAN_LENGTH)
        for group in range(-(-number // _TOGETHER)):
            chance = np.random.default_rng([self.seed, 1, group])
            yield from self._draw(ladder, min(_TOGETHER, number - group * _TOGETHER), chance)

    def _draw(self, ladder: np.ndarray, number: int, chance: Any) -> list[np.ndarray]:
        """Documents that begin after word 0 and run until they draw it, all at the same time."""
        running, words = np.arange(number), np.zeros(number, np.int64)
        drawn = []
        while len(running):
            states = self.state(words)
            places = np.searchsorted(ladder, states + chance.random(len(words)), side="right")
            words = np.minimum(places - states * self.words, self.words - 1)
            going = words > 0
            running, words = running[going], words[going]
            drawn.append((running, words))
        order = np.concatenate([running for running, _ in drawn])
        text = np.concatenate([words for _, words in drawn])[np.argsort(order, kind="stable")]
        return np.split(text, np.cumsum(np.bincount(order, minlength=number))[:-1])


@functools.lru_cache(maxsize=2)
def language(argument: str) -> Language:
    """The language that "rank=16,words=1024" names; its options are the attributes of `Language`.

    Raises:
        UserError: an option is unknown, given twice, no number, or out of range; or rank or words
            is missing.
    """
    known = {field.name: float if field.name == "spread" else int for field in _FIELDS}
    options = {}
    for part in argument.split(","):
        name, _, value = part.partition("=")
        if name not in known or name in options:
            problem = "is given twice" if name in options else f"is no option of {', '.join(known)}"
            raise UserError(f"synthetic:{part} {problem}")
        try:
            options[name] = known[name](value)
        except ValueError:
            raise UserError(f"synthetic:{part} is no number; use for example {name}=16") from None
    missing = {"rank", "words"} - options.keys()
    if missing:
        raise UserError(f"synthetic:{argument} lacks {' and '.join(sorted(missing))}")
    return Language(**options)


def language_of(source: str) -> Language | None:
    """The language of the source `synthetic:OPTIONS`; None for any other source."""
    name, _, options = source.partition(":")
    return language(options) if name == "synthetic" else None


def texts(argument: str) -> Iterator[str]:
    """The documents of a language as text, one character for each word."""
    tokenizer = CharacterTokenizer(language(argument).words)
    for words in language(argument).documents():
        yield tokenizer.decode(words)


_FIELDS = dataclasses.fields(Language)
