"""Top-k in a TPU kernel: the softmax over the k largest scores of each row, which are found by
counting how many lie above a threshold whose interval is halved.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.attention.kernels.families import Rows
from lm.attention.kernels.whole_rows import SUBLANES, Scores, WholeRows, by_sublanes

_END = 2.0**24  # behind all places
# After so many halvings no float is left between two.
_MOST = 200
# Equal scores are equal to so much of them where they are computed again.
_SAME = 1e-6


class TopK(WholeRows):
    """e^(s - lse) of the scores s from "high" on, and of those from "low" on, which are equal to
    each other, up to the place "last".
    """

    saved = ("lse", "low", "high", "last")
    has_sensitivity = False

    def weigh(
        self, scores: jax.Array, rows: Rows, first_key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `WholeRows`; the sensitivities are the weights."""
        chosen = scores >= rows["high"]
        chosen |= (scores >= rows["low"]) & (_places(scores, first_key) <= rows["last"])
        weights = jnp.where(chosen, jnp.exp(scores - rows["lse"]), 0.0)
        return weights, weights

    def has_weight(self, leaders: jax.Array, rows: Rows) -> jax.Array:
        """See `WholeRows`."""
        return jnp.max((leaders >= rows["low"]).astype(jnp.int32)) > 0

    def solve(
        self, found: Scores, count: jax.Array, rows: Rows, first_key: jax.Array
    ) -> list[jax.Array]:
        """See `WholeRows`."""
        del rows
        k, top = float(self.options["k"]), found.top
        number, start = jnp.finfo(top.dtype), jnp.zeros((SUBLANES, top.shape[1]), top.dtype)

        def total(terms: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
            """Sums of terms of scores and places over each row."""

            def add(carry, part, place):
                return (carry[0] + by_sublanes(terms(part, first_key + place).astype(top.dtype)),)

            return jnp.sum(found.fold(found.scores, count, (start,), add)[0], 0, keepdims=True)

        def above(threshold: jax.Array) -> jax.Array:
            return total(lambda scores, _: scores >= threshold)

        def lower(carry, part, _):
            visible = jnp.where(part == -jnp.inf, jnp.inf, part)
            return (jnp.minimum(carry[0], by_sublanes(visible, jnp.min)),)

        least = found.fold(found.scores, count, (start + jnp.inf,), lower)[0]
        low = jnp.min(least, axis=0, keepdims=True)
        high = top + jnp.maximum(1.0, 2.0 * number.eps * jnp.abs(top))
        few = above(low) <= k
        low, high = _halved(above, jnp.where(few, high, low), high, k)
        tied = low < high
        room = k - above(high)

        def tied_until(place: jax.Array) -> jax.Array:
            def terms(scores, first):
                return (scores >= low) & (scores < high) & (_places(scores, first) <= -place)

            return total(terms)

        last, _ = _halved(tied_until, jnp.where(tied, -_END, 1.0), jnp.ones_like(top), room)
        low = jnp.where(tied, low - _SAME * jnp.abs(low), low)
        high = jnp.where(tied, high + _SAME * jnp.abs(high), low)
        low, high = (jnp.where(few, number.min, bound) for bound in (low, high))
        known = {"lse": top, "low": low, "high": high, "last": -last}
        sums = total(lambda scores, first: self.weigh(scores, known, first)[0])
        return [top + jnp.log(jnp.where(sums == 0.0, 1.0, sums)), low, high, -last]


def _halved(
    count: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array, goal
) -> tuple[jax.Array, jax.Array]:
    """Halves each row's interval until both ends are at a place where `count`, which falls from low
    to high, is `goal`, or no float is left between them.
    """

    def inside(low, high):
        middle = 0.5 * (low + high)
        return middle, (middle > low) & (middle < high)

    def unfinished(carry):
        steps, low, high = carry
        return (steps < _MOST) & (jnp.max(inside(low, high)[1].astype(jnp.int32)) > 0)

    def halve(carry):
        steps, low, high = carry
        middle, inner = inside(low, high)
        found = count(middle)
        low, high = (
            jnp.where(inner & moves, middle, end)
            for end, moves in ((low, found >= goal), (high, found <= goal))
        )
        return steps + 1, low, high

    return jax.lax.while_loop(unfinished, halve, (0, low, high))[1:]


def _places(scores: jax.Array, first_key: jax.Array) -> jax.Array:
    keys = first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    return keys.astype(scores.dtype)
