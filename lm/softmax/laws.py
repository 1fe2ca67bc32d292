"""Laws that hold for every weighting, to which any implementation can be held, ours or not.

A law takes a subject, tries it on scores chosen to break it (ties, scores of 1e4, one key, empty
rows, long rows), and gives the largest violation beside the tolerance.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from lm.softmax.oracles import oracle
from lm.softmax.weighting import Weighting

Scores = np.ndarray
Where = np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Subject:
    """An implementation under test.

    Attributes:
      name: what the scorecard calls it.
      weights: `weights(scores, where) -> weights`, over the last axis, for numpy arrays in and
        anything that numpy can read out; `where` is None or a boolean array.
      expected: `expected(scores, where)`, the weights in float64.
      facts: what it claims to be.
      gradient: `gradient(scores, where, direction)`, that of sum(weights * direction) in the
        scores; None: it has none.
      masks: it takes a `where`.
      lipschitz: the constant that it claims in every l_p; None: it claims none.
      eager: `weights` without jit. None: it is not JAX's, so that laws of jit, vmap, second
        derivatives and half precision do not apply.
    """

    name: str
    weights: Callable[[Any, Any], Any]
    expected: Callable[[Scores, Where], np.ndarray]
    facts: Weighting
    gradient: Callable[[Scores, Where, np.ndarray], Any] | None
    masks: bool = True
    lipschitz: float | None = None
    eager: Callable[[Any, Any], Any] | None = None


def jax_subject(
    name: str, facts: Weighting, expected: str | None = None, **options: object
) -> Subject:
    """A weighting of JAX as a subject; `options` are also its oracle's."""

    def weights(scores: ArrayLike, where: ArrayLike | None) -> jax.Array:
        return facts.apply(jnp.asarray(scores), where, **options)

    def gradient(scores: ArrayLike, where: ArrayLike | None, direction: ArrayLike) -> jax.Array:
        return jax.grad(lambda s: jnp.sum(weights(s, where) * direction))(jnp.asarray(scores))

    return Subject(
        name,
        jax.jit(weights),
        lambda scores, where: oracle(expected or name, scores, where, **options),
        facts,
        jax.jit(gradient),
        lipschitz=None if facts.lipschitz is None else facts.lipschitz(**options),
        eager=weights,
    )


def _random(shape: tuple[int, ...], scale: float = 2.0, seed: int = 0) -> Scores:
    return np.random.default_rng(seed).normal(size=shape) * scale


def _masked(subject: Subject, scores: Scores, seed: int = 1) -> Where:
    """About half the places; the first row has one only, and the second row none."""
    if not subject.masks:
        return None
    where = np.random.default_rng(seed).random(scores.shape) < 0.6
    where[:, 0], where[0, 1:], where[1] = True, False, False
    return where


def _cases(subject: Subject, dtype: DTypeLike = np.float32) -> Iterator[tuple[Scores, Where]]:
    """Scores and masks that have broken softmaxes before."""
    plain = _random((6, 33))
    hard = np.random.default_rng(2).choice([-1e4, -30.0, -1.0, 0.0, 0.5, 30.0, 1e4], plain.shape)
    for scores in (
        plain,
        np.round(plain),  # ties
        np.zeros_like(plain),
        1e-3 * plain,
        hard,
        _random((3, 1)),
        _random((3, 700)) * [[0.1], [1.0], [50.0]],
    ):
        yield scores.astype(dtype), None
        if subject.masks and scores.shape[0] > 1:
            yield scores.astype(dtype), _masked(subject, scores)


def _distance(actual: ArrayLike, expected: ArrayLike) -> float:
    """The largest difference, relative where the expected value is above one; inf for NaN."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    distance = np.max(np.abs(actual - expected) / np.maximum(np.abs(expected), 1.0), initial=0.0)
    return float(distance) if np.isfinite(distance) else float("inf")


def formula(subject: Subject) -> float:
    """Weights are those of the formula in float64."""
    return max(_distance(subject.weights(s, w), subject.expected(s, w)) for s, w in _cases(subject))


def formula_in_float64(subject: Subject) -> float:
    """Float64 scores are computed in float64."""
    with jax.enable_x64(True):
        return max(
            _distance(subject.weights(s, w), subject.expected(s, w))
            for s, w in _cases(subject, np.float64)
        )


def sum_to_one(subject: Subject) -> float | None:
    """Rows with a visible place sum to one (signed ones in absolute value)."""
    if not subject.facts.normalised:
        return None
    worst = 0.0
    for scores, where in _cases(subject):
        weights = np.asarray(subject.weights(scores, where), np.float64)
        total = (np.abs(weights) if subject.facts.signed else weights).sum(-1)
        visible = np.ones(len(scores), bool) if where is None else where.any(-1)
        worst = max(worst, _distance(total[visible], 1.0))
    return worst


def signs(subject: Subject) -> float | None:
    """No weight is negative."""
    if subject.facts.signed:
        return None
    return max(float(-np.min(np.asarray(subject.weights(s, w)))) for s, w in _cases(subject))


def masked_is_zero(subject: Subject) -> float | None:
    """Masked places have exactly zero, whatever their score is."""
    if not subject.masks:
        return None
    worst = 0.0
    for fill in (0.0, 1e30, -np.inf, np.nan):
        scores = _random((6, 33)).astype(np.float32)
        where = np.asarray(_masked(subject, scores))
        weights = subject.weights(np.where(where, scores, np.float32(fill)), where)
        worst = max(worst, _distance(np.asarray(weights)[~where], 0.0))
    return worst


def masked_is_absent(subject: Subject) -> float | None:
    """A masked place equals a place that is not there."""
    if not subject.masks:
        return None
    scores = _random((4, 12)).astype(np.float32)
    where = np.broadcast_to(np.arange(12) < 7, scores.shape)
    return _distance(
        np.asarray(subject.weights(scores, where))[:, :7], subject.weights(scores[:, :7], None)
    )


def empty_row(subject: Subject) -> float | None:
    """A row without a visible place has zeros and zero gradient, never NaN."""
    if not subject.masks:
        return None
    scores = _random((6, 9)).astype(np.float32)
    where = _masked(subject, scores)
    worst = _distance(np.asarray(subject.weights(scores, where))[1], 0.0)
    if subject.gradient is None:
        return worst
    gradient = np.asarray(subject.gradient(scores, where, _random((6, 9), seed=3)))
    return max(worst, _distance(gradient[1], 0.0), _distance(gradient[~np.asarray(where)], 0.0))


def one_key(subject: Subject) -> float | None:
    """A single key has the whole weight, at any score."""
    if not subject.facts.normalised or subject.facts.signed:
        return None
    scores = np.array([[-1e4], [-1.0], [0.0], [3.0], [1e4]], np.float32)
    return _distance(subject.weights(scores, None), 1.0)


def extremes(subject: Subject) -> float:
    """Scores of 1e4, of either sign, give finite weights and gradients."""
    scores = np.random.default_rng(4).choice([-1e4, -3.0, 0.0, 3.0, 1e4], (40, 9))
    scores = scores.astype(np.float32)
    finite = np.isfinite(np.asarray(subject.weights(scores, None))).all()
    if subject.gradient is not None:
        gradient = subject.gradient(scores, None, _random(scores.shape, seed=3))
        finite &= np.isfinite(np.asarray(gradient)).all()
    return 0.0 if finite else float("inf")


def monotone(subject: Subject) -> float | None:
    """Within a row, a greater score never has the smaller weight."""
    if not subject.facts.monotone:
        return None
    worst = 0.0
    for scores, _ in _cases(subject):
        weights = np.asarray(subject.weights(scores, None), np.float64)
        order = np.argsort(scores, axis=-1, kind="stable")
        ranked, ordered = (np.take_along_axis(x, order, axis=-1) for x in (weights, scores))
        falls = np.where(np.diff(ordered) > 0, -np.diff(ranked), 0.0)
        worst = max(worst, float(np.max(falls, initial=0.0)))
    return worst


def permutation(subject: Subject) -> float:
    """Shuffled keys have shuffled weights."""
    scores = _random((4, 50)).astype(np.float32)
    order = np.random.default_rng(5).permutation(50)
    return _distance(
        subject.weights(scores[:, order], None), np.asarray(subject.weights(scores, None))[:, order]
    )


def shift(subject: Subject) -> float | None:
    """A constant added to a row changes nothing."""
    if not subject.facts.shift_invariant:
        return None
    scores = np.round(64 * _random((4, 50))).astype(np.float32) / 64
    return _distance(subject.weights(scores + 8.0, None), subject.weights(scores, None))


def zeros(subject: Subject) -> float:
    """Weights of moderate scores are zero in a sparse variant, and nowhere in another."""
    weights = np.asarray(subject.weights(_random((4, 50), 5.0).astype(np.float32), None))
    return 0.0 if (weights == 0).any() == subject.facts.sparse else float("inf")


def gradient(subject: Subject) -> float | None:
    """The gradient is the formula's, by finite differences in float64."""
    if subject.gradient is None:
        return None
    scores, direction = _random((5, 9)), _random((5, 9), seed=3)
    where, step = _masked(subject, scores), 1e-6
    numeric = np.zeros_like(scores)
    for place in range(scores.shape[1]):
        shift = step * (np.arange(scores.shape[1]) == place)
        up, down = (subject.expected(scores + sign * shift, where) for sign in (1, -1))
        numeric[:, place] = np.sum((up - down) * direction, axis=-1) / (2 * step)
    with jax.enable_x64(True):
        return _distance(subject.gradient(scores, where, direction), numeric)


def second_derivative(subject: Subject) -> float | None:
    """The gradient of the gradient is right wherever the formula is smooth."""
    if subject.gradient is None or subject.eager is None:
        return None
    with jax.enable_x64(True):
        scores, direction, along = (_random((3, 6), 0.5, seed) for seed in (0, 3, 5))
        own = subject.gradient
        _, exact = jax.jvp(
            lambda s: own(s, None, direction), (jnp.asarray(scores),), (jnp.asarray(along),)
        )
        up, down = (own(scores + sign * 1e-6 * along, None, direction) for sign in (1, -1))
        return _distance(exact, (np.asarray(up) - np.asarray(down)) / 2e-6)


def lipschitz(subject: Subject) -> float | None:
    """Sums of absolute values over a row or a column of the Jacobian, and so its norm in every l_p,
    are at most the constant.
    """
    if subject.lipschitz is None or subject.gradient is None:
        return None
    scores = np.concatenate([_random((64, 5), scale) for scale in (0.3, 2.0, 10.0)])
    scores[::2, :2] = scores[::2].max()  # two that share the weight
    scores = scores.astype(np.float32)
    basis = [np.broadcast_to(each, scores.shape) for each in np.eye(5, dtype=np.float32)]
    sizes = np.abs([subject.gradient(scores, None, direction) for direction in basis])
    return float(max(sizes.sum(0).max(), sizes.sum(2).max())) - subject.lipschitz


def half_precision(subject: Subject) -> float | None:
    """Half-precision scores are computed in float32, the weights rounded once to their type."""
    if subject.eager is None:
        return None
    worst = 0.0
    for dtype in (jnp.bfloat16, jnp.float16):
        scores = jnp.asarray(_random((4, 50)), dtype)
        weights = subject.weights(scores, None)
        once = subject.weights(scores.astype(jnp.float32), None).astype(dtype)
        worst = max(worst, _distance(weights, once) if weights.dtype == dtype else float("inf"))
    return worst


def compiled(subject: Subject) -> float | None:
    """Compiled or not, the weights are the same."""
    if subject.eager is None:
        return None
    scores = _random((6, 700)).astype(np.float32)
    where = _masked(subject, scores)
    return _distance(subject.eager(scores, where), subject.weights(scores, where))


def mapped(subject: Subject) -> float | None:
    """Mapped over a leading axis, the weights are the same."""
    if subject.eager is None:
        return None
    scores = _random((6, 700)).astype(np.float32)
    where = _masked(subject, scores)
    whole = subject.weights(scores, where)
    return _distance(
        jax.vmap(subject.weights, (0, None if where is None else 0))(scores, where), whole
    )


# Name -> law and the violation that it allows.
LAWS: dict[str, tuple[Callable[[Subject], float | None], float]] = {
    "formula, float32": (formula, 1e-6),
    "formula, float64": (formula_in_float64, 1e-12),
    "rows sum to one": (sum_to_one, 1e-6),
    "not negative": (signs, 0.0),
    "masked is zero": (masked_is_zero, 0.0),
    "masked is absent": (masked_is_absent, 1e-6),
    "empty row": (empty_row, 0.0),
    "one key": (one_key, 0.0),
    "1e4 is finite": (extremes, 0.0),
    "monotone": (monotone, 2e-7),
    "shuffled keys": (permutation, 5e-7),
    "shift": (shift, 1e-6),
    "zeros as declared": (zeros, 0.0),
    "gradient": (gradient, 1e-7),
    "second derivative": (second_derivative, 1e-6),
    "Lipschitz": (lipschitz, 1e-6),
    "half precision": (half_precision, 0.0),
    "jit": (compiled, 1e-6),
    "vmap": (mapped, 1e-6),
}
