"""Finds tokens that are never the likeliest, by linear programs, for heads with linear logits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.devices.hosts import to_host

# Heads whose most likely token has the largest logit of h W' + b: they differ in their training
# loss, or by an increasing function of each logit.
LINEAR = ("softmax", "sigsoftmax", "plif", "gumbel", "sampled", "dynamic", "nce", "sparsemax")
LINEAR += ("entmax", "sigmoid", "squared", "gaussian")
_MARGIN = 1e-7  # of linear programs, in units of the largest difference between two tokens


def token_vectors(head: str, params: Mapping[str, Any], tied: bool) -> np.ndarray | None:
    """Token vectors with a last column for the bias, [V, D + 1]; None where logits are not linear.

    A `tied` head shares the embedding table.
    """
    if head not in LINEAR:
        return None
    own = params.get("head", {})
    table = to_host(params["embedding"] if tied else own["table"]).astype(np.float64)
    bias = to_host(own["bias"]).astype(np.float64) if "bias" in own else np.zeros(len(table))
    if head == "gaussian":
        bias = bias - np.sum(table**2, axis=1) / 2
    return np.concatenate([table, bias[:, None]], axis=1)


def direction(vectors: np.ndarray, token: int) -> np.ndarray | None:
    """An x = (h, t), t >= 0, for which x . (w, b) is largest for `token` alone, or None.

    Then h / t is a hidden state with `token` as its argmax (for t = 0, a large multiple of h).
    Without such x the token is never the argmax, whatever the model below: without a bias, its
    vector lies in the convex hull of the others (Demeter et al. 2005.02433; Grivas et al.
    2203.06462).

    The largest margin over a box, max e with x . (w_token - w_j) >= e for all j and |x| <= 1, is a
    linear program. Its constraints are the closest tokens; tokens that exceed `token` at the
    solution are added until there are none. Both results are exact: x is tested on all tokens, and
    a program without a margin for some tokens has none for all.

    Args:
      vectors: [V, D + 1], the last column the bias.
      token: its row.
    """
    from scipy.optimize import linprog  # slow to import

    ahead = vectors[token] - vectors
    ahead /= np.abs(ahead).max() or 1.0
    others = np.arange(len(vectors)) != token
    x = vectors[token] - vectors.mean(axis=0)
    x[-1] = max(x[-1], 0.0)
    x /= np.abs(x).max() or 1.0
    size = len(x)
    bounds = [(-1.0, 1.0)] * (size - 1) + [(0.0, 1.0), (None, 1.0)]
    chosen = np.zeros(len(vectors), bool)
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


def own_direction(vectors: np.ndarray, token: int) -> bool:
    """Whether a token is the argmax where the hidden state is its own vector minus the mean."""
    x = vectors[token] - vectors.mean(axis=0)
    return int(np.argmax(vectors[:, :-1] @ x[:-1])) == token
