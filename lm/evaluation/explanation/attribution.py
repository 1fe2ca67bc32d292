"""How much each token has to do with a decision: integrated gradients, and leaving tokens out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.evaluation.explanation.decision import Decision
from lm.evaluation.explanation.subject import Subject
from lm.model.batch import Batch

POINTS, MOST_POINTS = 32, 512  # of the path at which gradients are taken
TOLERANCE = 0.01  # of f(x) - f(baseline), by which the sum may miss it
_TOGETHER = 32  # rows that are computed at a time


class Integrated(NamedTuple):
    """Integrated gradients of a score f.

    Attributes:
      tokens: float64 [L], the attribution of each token.
      score, baseline: f(x) and f(baseline).
      points: gradients that were taken.
    """

    tokens: np.ndarray
    score: float
    baseline: float
    points: int

    @property
    def residual(self) -> float:
        """Sum of the attributions - (f(x) - f(baseline)); 0 by the law of completeness."""
        return float(self.tokens.sum() - (self.score - self.baseline))


def integrated_gradients(
    decision: Decision, subject: Subject, target: int, mask: int | None = None
) -> Integrated:
    """Integrated gradients (Sundararajan, Taly, Yan 1703.01365) of the score f of a candidate.

    With x_i the vector of token i and b_i that of the baseline,

        a_i = (x_i - b_i) . int_0^1 df/dx_i (b + t (x - b)) dt,   sum_i a_i = f(x) - f(b).

    The integral is taken by Gauss and Legendre's rule with `POINTS` points, and twice as many until
    the sum holds within `TOLERANCE`, or `MOST_POINTS`. A baseline keeps special tokens, whose
    attribution is 0, and positions.

    Args:
      target: the candidate's number.
      mask: the token whose vector is the baseline's at each token of the text; None: zeros.
    """
    table = decision.params["embedding"]
    own = table[subject.ids].astype(jnp.float32)
    blank = jnp.zeros_like(own) if mask is None else table[mask].astype(jnp.float32)
    start = jnp.where(subject.special[:, None], own, blank)
    row = subject.batch(np.ones((1, len(subject.ids)), bool))
    score, base = (float(_score(decision, row, each[None], target)[0]) for each in (own, start))
    points = POINTS
    while True:
        nodes, shares = np.polynomial.legendre.leggauss(points)
        total = np.zeros(own.shape)
        for first in range(0, points, _TOGETHER):
            part = slice(first, first + _TOGETHER)
            steps = jnp.asarray((nodes[part] + 1) / 2, jnp.float32)[:, None, None]
            path = start + steps * (own - start)
            batch = subject.batch(np.ones((len(path), len(subject.ids)), bool))
            each = np.asarray(_gradients(decision, batch, path, target), np.float64)
            total += np.einsum("m,mle->le", shares[part] / 2, each)
        tokens = (total * np.asarray(own - start, np.float64)).sum(axis=-1)
        found = Integrated(tokens, score, base, points)
        if abs(found.residual) <= TOLERANCE * abs(score - base) or points >= MOST_POINTS:
            return found
        points *= 2


def leave_out(
    decision: Decision, subject: Subject, parts: np.ndarray, target: int, mask: int | None = None
) -> np.ndarray:
    """The score [P] of a candidate when each of P parts is left out of the text.

    Args:
      parts: boolean [P, L], the tokens of each part.
      target: the candidate's number.
      mask: the token that takes their place; None: they are taken out of the row, where nothing
        attends to them, and the others keep their positions.
    """
    found = [np.zeros(0, np.float32)]
    for first in range(0, len(parts), _TOGETHER):
        some = parts[first : first + _TOGETHER]
        padded = np.concatenate([some, np.zeros((_TOGETHER - len(some), some.shape[1]), bool)])
        if mask is None:
            batch = subject.batch(~padded)
        else:
            tokens = np.where(padded, mask, subject.ids).astype(np.int32)
            batch = subject.batch(np.ones_like(padded), tokens)
        found.append(np.asarray(_scores(decision, batch))[: len(some), target])
    return np.concatenate(found)


def token_parts(subject: Subject) -> np.ndarray:
    """Each token of the text alone, boolean [P, L]; special tokens are never left out."""
    return np.eye(len(subject.ids), dtype=bool)[~subject.special]


def word_parts(subject: Subject) -> np.ndarray:
    """The tokens of each word, boolean [W, L]."""
    return np.arange(subject.words.max(initial=-1) + 1)[:, None] == subject.words


@jax.jit
def _scores(decision: Decision, batch: Batch) -> jax.Array:
    """[B, V]."""
    return decision.scores(decision.outputs(batch))


@jax.jit
def _score(decision: Decision, batch: Batch, vectors: jax.Array, target: int) -> jax.Array:
    """[B] of vectors [B, L, E]."""
    return decision.scores(decision.outputs(batch, vectors=vectors))[:, target]


@jax.jit
def _gradients(decision: Decision, batch: Batch, vectors: jax.Array, target: int) -> jax.Array:
    """df/dx [B, L, E]."""
    return jax.grad(lambda x: _score(decision, batch, x, target).sum())(vectors)
