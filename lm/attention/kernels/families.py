"""What a kernel asks of a weighting, a tile of scores at a time, in the weighting's own formulas.

Tiles are [keys, queries], and what belongs to a row of scores, which is a query's, is [1, queries].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lm.softmax.weighting import Weighting

Rows = Mapping[str, jax.Array]  # what is known of each row, by name, [1, queries]


class Tile(NamedTuple):
    """What a tile gives in the backward pass.

    Attributes:
      weights: [keys, queries].
      scores: the gradient of the scores.
      options: by name, that of the options of each row, [1, queries].
    """

    weights: jax.Array
    scores: jax.Array
    options: Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A weighting as a kernel knows it.

    Attributes:
      weighting: its record.
      options: fixed, by name.
      names: of the options that each row has, which are differentiated.
    """

    weighting: Weighting
    options: Mapping[str, Any]
    names: tuple[str, ...] = ()

    saved: ClassVar[tuple[str, ...]] = ()  # what the forward pass keeps of each row

    @property
    def row_names(self) -> tuple[str, ...]:
        """What each row brings to the forward pass."""
        return ("length",) * self.weighting.needs_length + self.names

    def backward(
        self,
        scores: jax.Array,
        visible: jax.Array,
        rows: Rows,
        grads: jax.Array,
        first_key: jax.Array,
    ) -> Tile:
        """Weights and gradients of a tile.

        Args:
          scores, visible: of the tile.
          rows: options, what was saved of each row, and "delta".
          grads: those of weights.
          first_key: the place of the tile's first key.
        """
        raise NotImplementedError

    def of_rows(self, rows: Rows) -> dict[str, jax.Array]:
        """The options that each row has."""
        return {name: rows[name] for name in self.names if name != "sink"}


class Pointwise(Family):
    """Each place's weight by itself."""

    def weights(self, scores: jax.Array, visible: jax.Array, rows: Rows) -> jax.Array:
        """Those of a tile."""
        return self._apply(scores, visible, rows["length"], self.of_rows(rows))

    def backward(self, scores, visible, rows, grads, first_key) -> Tile:
        """See `Family`."""
        del first_key
        weights, gradient = jax.vjp(
            lambda scores, options: self._apply(scores, visible, rows["length"], options),
            scores,
            self.of_rows(rows),
        )
        return Tile(weights, *gradient(grads))

    def _apply(self, scores, visible, length, options) -> jax.Array:
        return self.weighting.apply(scores, visible, length=length, **self.options, **options)


class Terms(Family):
    """t / sum t, with t at least 0 and a function of each score."""

    saved = ("share",)  # 1 / sum t

    def terms(self, scores: jax.Array, visible: jax.Array, rows: Rows) -> jax.Array:
        """Those of a tile."""
        return jnp.where(visible, self._terms(scores, self.of_rows(rows)), 0.0)

    def backward(self, scores, visible, rows, grads, first_key) -> Tile:
        """See `Family`; rows bring "share", and "delta", the mean of `grads` by the weights."""
        del first_key
        terms, gradient = jax.vjp(self._terms, scores, self.of_rows(rows))
        of_terms = jnp.where(visible, rows["share"] * (grads - rows["delta"]), 0.0)
        return Tile(jnp.where(visible, terms * rows["share"], 0.0), *gradient(of_terms))

    def _terms(self, scores, options) -> jax.Array:
        assert self.weighting.terms is not None
        return self.weighting.terms(scores, **self.options, **options)


class Exponential(Family):
    """e^x / sum e^x, with x a function of each score; times the weighting's factor."""

    saved = ("lse",)

    def exponents(self, scores: jax.Array, visible: jax.Array, rows: Rows) -> jax.Array:
        """Those of a tile, minus infinity where nothing is visible."""
        x = self._exponents(scores, rows, self.of_rows(rows))
        return jnp.where(visible, x, -jnp.inf)

    def times_factor(self, scores: jax.Array, values: jax.Array) -> jax.Array:
        """Values times the factors of weights."""
        factor = self.weighting.factor
        return values if factor is None else factor(scores) * values

    def backward(self, scores, visible, rows, grads, first_key) -> Tile:
        """See `Family`; rows bring "lse", and "delta", the mean of `grads` by the weights."""
        del first_key
        x, gradient = jax.vjp(
            lambda scores, options: self._exponents(scores, rows, options),
            scores,
            self.of_rows(rows),
        )
        shares = jnp.where(visible, jnp.exp(x - rows["lse"]), 0.0)
        of_exponents = shares * (self.times_factor(scores, grads) - rows["delta"])
        return Tile(self.times_factor(scores, shares), *gradient(of_exponents))

    def _exponents(self, scores, rows, options) -> jax.Array:
        assert self.weighting.exponents is not None
        fixed = {name: value for name, value in self.options.items() if name != "sink"}
        return self.weighting.exponents(scores, rows.get("length"), **fixed, **options)
