"""Which words can never be the most likely one? Of a head whose most likely word is that of linear
logits, those whose vector no direction singles out; found by linear programming.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Heads whose most likely word is the largest of h W' + b: they differ in how they are trained, or
# by an increasing function of each logit.
LINEAR = ("softmax", "sigsoftmax", "plif", "gumbel", "sampled", "dynamic", "nce", "sparsemax")
LINEAR += ("entmax", "sigmoid", "squared", "gaussian")
_MARGIN = 1e-7  # of linear programs, in units of the longest difference between two words


def linear_words(head: str, params: Mapping[str, Any], tied: bool) -> np.ndarray | None:
    """Word vectors with a last column for the bias, [V, D + 1]; None where logits are not linear.

    Args:
      head: its name.
      params: of the model.
      tied: whether the head borrows the embedding table.
    """
    if head not in LINEAR:
        return None
    own = params.get("head", {})
    table = np.asarray(params["embedding"] if tied else own["table"], np.float64)
    bias = np.asarray(own.get("bias", np.zeros(len(table))), np.float64)
    if head == "gaussian":
        bias = bias - np.sum(table**2, axis=1) / 2
    return np.concatenate([table, bias[:, None]], axis=1)


def direction(words: np.ndarray, word: int) -> np.ndarray | None:
    """An x = (h, t), t >= 0, for which x . (w, b) is largest for `word` alone; None: there is none.

    Then h / t is a hidden state of which `word` is the argmax (for t = 0, a large multiple of h).
    Without such x the word is never the argmax, whatever the model below: without a bias, its
    vector lies in the convex hull of the others (Demeter et al. 2005.02433; Grivas et al.
    2203.06462).

    The largest margin over a box, max e with x . (w_word - w_j) >= e for all j and |x| <= 1, is a
    linear program. Only the words that come closest are constraints; while others do better than
    `word` at its solution, they are added. Both answers are certain: x is tried on all words, and
    a program without a margin for some words has none for all.

    Args:
      words: [V, D + 1], the last column the bias.
      word: its row.
    """
    from scipy.optimize import linprog  # slow to import

    ahead = words[word] - words
    ahead /= np.abs(ahead).max() or 1.0
    others = np.arange(len(words)) != word
    x = words[word] - words.mean(axis=0)
    x[-1] = max(x[-1], 0.0)
    x /= np.abs(x).max() or 1.0
    size = len(x)
    bounds = [(-1.0, 1.0)] * (size - 1) + [(0.0, 1.0), (None, 1.0)]
    chosen = np.zeros(len(words), bool)
    while True:
        margins = np.where(others, ahead @ x, np.inf)
        if margins.min() > _MARGIN:
            return x
        nearest = np.argsort(np.where(chosen, np.inf, margins))[: 4 * size]
        before = chosen.sum()
        chosen[nearest[others[nearest]]] = True
        if chosen.sum() == before:
            return None
        limits = np.concatenate([-ahead[chosen], np.ones((int(chosen.sum()), 1))], axis=1)
        solution = linprog(
            np.append(np.zeros(size), -1.0), limits, np.zeros(len(limits)), bounds=bounds
        )
        x, margin = solution.x[:-1], solution.x[-1]
        if margin <= _MARGIN:
            return None


def own_direction(words: np.ndarray, word: int) -> bool:
    """Whether a word is the argmax where the hidden state is its own vector less the mean."""
    x = words[word] - words.mean(axis=0)
    return int(np.argmax(words[:, :-1] @ x[:-1])) == word
