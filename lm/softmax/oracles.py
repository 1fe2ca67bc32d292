"""The reference of the laws: each weighting's formula row by row in float64 numpy, sharing no code
with the fast functions.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def oracle(
    name: str, scores: ArrayLike, where: ArrayLike | None = None, **options: object
) -> np.ndarray:
    """The weights of a weighting by its formula; [..., S] float64, zero where masked."""
    scores = np.asarray(scores, np.float64)
    where = np.broadcast_to(True if where is None else where, scores.shape)
    weights = np.zeros(scores.shape)
    for row in np.ndindex(scores.shape[:-1]):
        visible = np.asarray(where[row])
        if visible.any():
            weights[(*row, visible)] = ROWS[name](scores[row][visible], **options)
    return weights


def _softmax(s: np.ndarray) -> np.ndarray:
    exponentials = np.exp(s - s.max())
    return exponentials / exponentials.sum()


def _sink(s: np.ndarray, sink: float) -> np.ndarray:
    return _softmax(np.append(s, sink))[:-1]


def _taylor(s: np.ndarray) -> np.ndarray:
    series = 1.0 + s + s**2 / 2.0
    return series / series.sum()


def _sigmoid(s: np.ndarray, bias: float | None = None) -> np.ndarray:
    shift = -np.log(s.size) if bias is None else bias
    return np.exp(-np.logaddexp(0.0, -(s + shift)))


def _softplus_l1(s: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logarithm = np.where(s < -40.0, s, np.log(np.logaddexp(0.0, s)))
    return _softmax(logarithm)


def _softpick(s: np.ndarray) -> np.ndarray:
    top = max(s.max(), 0.0)
    terms = np.exp(s - top) - np.exp(-top)
    total = np.abs(terms).sum()
    return np.maximum(terms, 0.0) / (total if total else 1.0)


def _entmax(s: np.ndarray, alpha: float = 1.5) -> np.ndarray:
    """The threshold by bisection, to the last bit."""
    if alpha == 1.0:
        return _softmax(s)
    if alpha < 1.0:
        return _entmax_below_one(s, alpha)
    z = (alpha - 1.0) * (s - s.max())
    low, high = -1.0, 0.0
    for _ in range(100):
        middle = (low + high) / 2
        if _power(z - middle, alpha).sum() > 1.0:
            low = middle
        else:
            high = middle
    weights = _power(z - low, alpha)
    return weights / weights.sum()


def _entmax_below_one(s: np.ndarray, alpha: float) -> np.ndarray:
    distance = (1.0 - alpha) * (s.max() - s)
    low, high = 1.0, float(s.size) ** (1.0 - alpha)
    for _ in range(100):
        middle = (low + high) / 2
        if ((middle + distance) ** (1.0 / (alpha - 1.0))).sum() > 1.0:
            low = middle
        else:
            high = middle
    weights = (low + distance) ** (1.0 / (alpha - 1.0))
    return weights / weights.sum()


def _power(slack: np.ndarray, alpha: float) -> np.ndarray:
    return np.maximum(slack, 0.0) ** (1.0 / (alpha - 1.0))


def _alpha_relu(s: np.ndarray, alpha: float = 1.5, tau: float | None = None) -> np.ndarray:
    return _power((alpha - 1.0) * s - (-(s.size ** (1.0 - alpha)) if tau is None else tau), alpha)


def _normmax(s: np.ndarray, alpha: float = 2.0) -> np.ndarray:
    z, low, high = s - s.max(), -1.0, 0.0
    for _ in range(100):
        middle = (low + high) / 2
        if (np.maximum(z - middle, 0.0) ** (alpha / (alpha - 1.0))).sum() > 1.0:
            low = middle
        else:
            high = middle
    weights = _power(z - low, alpha)
    return weights / weights.sum()


def _budget(s: np.ndarray, budget: float = 2.0) -> np.ndarray:
    """The sum falls in straight lines between the thresholds at which a place leaves 0 or 1."""
    if s.size <= budget:
        return np.ones(s.size)
    ends = np.sort(np.concatenate([s - 1.0, s]))
    sums = np.clip(s - ends[:, None], 0.0, 1.0).sum(1)
    return np.clip(s - np.interp(-budget, -sums, ends), 0.0, 1.0)


def _top_k(s: np.ndarray, k: int = 32) -> np.ndarray:
    chosen = np.argsort(-s, kind="stable")[:k]
    weights = np.zeros_like(s)
    weights[chosen] = _softmax(s[chosen])
    return weights


def _gumbel_softmax(s: np.ndarray, temperature: float = 1.0, hard: bool = False) -> np.ndarray:
    """Without noise."""
    if hard:
        return (np.arange(s.size) == s.argmax()).astype(float)
    return _softmax(s / temperature)


ROWS: dict[str, Callable[..., np.ndarray]] = {
    "softmax": _softmax,
    "temperature": lambda s, temperature=1.0: _softmax(s / temperature),
    "softcap": lambda s, cap=50.0: _softmax(cap * np.tanh(s / cap)),
    "log_length": lambda s, reference_length=512.0: _softmax(
        s * np.log(s.size) / np.log(reference_length)
    ),
    "ssmax": lambda s, scale: _softmax(scale * s * np.log(s.size)),
    "off_by_one": lambda s: _sink(s, 0.0),
    "sink": _sink,
    "taylor": _taylor,
    "sigmoid": _sigmoid,
    "relu": lambda s: np.maximum(s, 0.0) / s.size,
    "relu_squared": lambda s: np.maximum(s, 0.0) ** 2 / s.size,
    "softplus_l1": _softplus_l1,
    "sparsemax": lambda s: _entmax(s, 2.0),
    "entmax15": lambda s: _entmax(s, 1.5),
    "entmax": _entmax,
    "alpha_relu": _alpha_relu,
    "asentmax": lambda s, beta, gamma, alpha=1.5, delta=1.0: _entmax(
        (delta + beta * np.log(max(s.size, 2)) ** gamma) * s, alpha
    ),
    "normmax": _normmax,
    "budget": _budget,
    "top_k": _top_k,
    "gumbel_softmax": _gumbel_softmax,
    "softpick": _softpick,
    "cog": lambda s: np.where(s < 0, -1.0, 1.0) * _softmax(np.abs(s)),
}
