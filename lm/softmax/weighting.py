"""The contract of a weighting: a function from scores to weights, and facts about it.

The function's own conventions are one contract for all variants: arithmetic in float32 (float64
stays float64) whatever comes in, the result in the caller's dtype, masked places exactly zero, and
a row with no visible place all zeros with zero gradient. Wherever a formula has n, it is the number
of visible places of the row. Options may be arrays that broadcast against the scores.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Range:
    """The open interval of an option, and how an unbounded parameter is mapped to it.

    Attributes:
      low, high: its ends.
      from_param: maps a parameter, any number, to the option.
      to_param: its inverse.
    """

    low: float
    high: float
    from_param: Callable[[Any], Any]
    to_param: Callable[[Any], Any]


ANY = Range(-math.inf, math.inf, lambda x: x, lambda option: option)
POSITIVE = Range(0.0, math.inf, jnp.exp, jnp.log)
# Between softmax and sparsemax (1909.00015).
ONE_TO_TWO = Range(
    1.0, 2.0, lambda x: 1.0 + jax.nn.sigmoid(x), lambda a: jnp.log((a - 1) / (2 - a))
)


@dataclasses.dataclass(frozen=True)
class Weighting:
    """A named map from scores to weights over the last axis.

    Attributes:
      apply: `apply(scores, where=None, **options_and_learned) -> weights`; `scores` is [..., S],
        `where` a boolean that broadcasts to it, True where visible. Random weightings also take
        `key=`.
      normalised: rows with a visible place sum to one; absolute values do where `signed`.
      signed: weights can be negative.
      monotone: within a row, a greater score never has the smaller weight.
      sparse: weights can be exactly zero at visible places.
      shift_invariant: adding a constant to a row changes nothing.
      random: `apply` needs a `key`.
      lipschitz: `lipschitz(**options)`, a constant L with |w(s) - w(t)|_p <= L |s - t|_p in every
        l_p and at every length, the largest sum of absolute values of a row or a column of the
        Jacobian (the softmax's is 1/2, 2510.23012); None where there is none, or none is known.
      learned: per-head parameters that the variant owns, name -> initialiser; `apply` takes them
        under their names, broadcast against `scores`.
      learnable: options that may be learned per head instead of fixed, name -> range.

    How weights are computed where a device sees a part of a row only (`lm.attention.ring`):
      exponents: `exponents(z, n, **options) -> x`, of scores z [..., S] and the row's length n
        [..., 1], such that weights are e^x / sum e^x, times `factor(z)`.
      factor: `factor(z)`, -1, 0 or 1 for each score, without gradient; None: 1.
      terms: `terms(z, **options)`, e^x where it is simpler than x, and in no danger of overflow.
      sink: the sum has one more term, e^b; b is the option "sink", or 0.
      pointwise: a place's weight depends on no other score; `apply` also takes `length`, the n of
        the whole row.
    A variant without either needs all scores of a row at once. Of these:
      entmax_alpha: `entmax_alpha(**options) -> alpha` of a member of the entmax family, whose rows
        have a threshold.
      top_k: the softmax over the k largest scores of each row; k is an option.
    """

    apply: Callable[..., jax.Array]
    normalised: bool = True
    signed: bool = False
    monotone: bool = True
    sparse: bool = False
    shift_invariant: bool = True
    random: bool = False
    lipschitz: Callable[..., float] | None = None
    learned: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    learnable: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    exponents: Callable[..., jax.Array] | None = None
    factor: Callable[[jax.Array], jax.Array] | None = None
    terms: Callable[..., jax.Array] | None = None
    sink: bool = False
    pointwise: bool = False
    entmax_alpha: Callable[..., Any] | None = None
    top_k: bool = False

    @property
    def mergeable(self) -> bool:
        """Whether the weights of a row follow from sums over its parts."""
        return self.exponents is not None or self.pointwise

    @property
    def needs_length(self) -> bool:
        """Whether weights computed from parts of a row depend on n."""
        if self.exponents is None:
            return self.pointwise
        n = inspect.signature(self.exponents).parameters["n"]
        return n.default is inspect.Parameter.empty

    @property
    def options(self) -> dict[str, Any]:
        """The fixed keywords of `apply` with their defaults (cap, temperature, ...)."""
        parameters = inspect.signature(self.apply).parameters.values()
        return {
            p.name: p.default
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.name not in ("key", "length", *self.learned)
        }


def promote(scores: jax.Array) -> jax.Array:
    """Scores in at least float32."""
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def visible_scores(
    scores: jax.Array, where: jax.Array | None, masked: float = -math.inf
) -> jax.Array:
    """Scores in at least float32, `masked` where they are masked.

    Formulas that multiply scores by a parameter want 0 there: minus infinity times the parameter's
    zero gradient is NaN.
    """
    scores = promote(scores)
    return scores if where is None else jnp.where(where, scores, masked)


def row_maximum(scores: jax.Array) -> jax.Array:
    """The largest score of each row, [..., 1], without gradient; 0 where nothing is visible."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    return jnp.where(top == -jnp.inf, 0.0, top)


def row_length(
    scores: jax.Array, where: jax.Array | None, length: jax.Array | None = None
) -> jax.Array:
    """The number n of visible places of each row, [..., 1], in at least float32; at least one.

    `length` is given where the scores are a part of the row's.
    """
    if length is not None:
        return length
    dtype = jnp.promote_types(scores.dtype, jnp.float32)
    if where is None:
        return jnp.asarray(max(scores.shape[-1], 1), dtype)
    where = jnp.broadcast_to(where, jnp.broadcast_shapes(where.shape, scores.shape))
    return jnp.maximum(jnp.sum(where, axis=-1, keepdims=True, dtype=dtype), 1.0)


def divide_by_sum(weights: jax.Array, total: jax.Array) -> jax.Array:
    """`weights / total`, and zeros (with zero gradient) where the total is zero."""
    return weights / jnp.where(total == 0.0, 1.0, total)
