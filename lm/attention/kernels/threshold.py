"""The entmax family in a TPU kernel: Newton's method (`lm.softmax.entmax_threshold`) over tiles of
scores in a core's memory.

Blocks of keys whose scores all lie below the threshold are left out of its sweeps.
"""

import jax
import jax.numpy as jnp

from lm.attention.kernels.families import Rows
from lm.attention.kernels.whole_rows import SUBLANES, Scores, WholeRows, by_sublanes
from lm.devices.tpu_core import Ref
from lm.softmax.entmax_threshold import (
    GROUP_SWEEPS,
    MAX_SWEEPS,
    Alpha,
    first_threshold,
    is_missing,
    newton_step,
    powers,
)
from lm.softmax.sparse import change_of


class Threshold(WholeRows):
    """scale relu((alpha-1) s - shift)^(1/(alpha-1)), with each row's own shift and scale."""

    saved = ("shift", "scale")

    def alpha(self, rows: Rows) -> Alpha:
        """A number, or [1, queries]."""
        assert self.weighting.entmax_alpha is not None
        return self.weighting.entmax_alpha(**self.options, **self.of_rows(rows))

    def weigh(
        self, scores: jax.Array, rows: Rows, first_key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Weights p, and p^(2-alpha); see `WholeRows`."""
        del first_key
        alpha, scale = self.alpha(rows), rows["scale"]
        # p / scale, and its power 2 - alpha
        weights, slopes = powers((alpha - 1.0) * scores - rows["shift"], alpha)
        if isinstance(alpha, float) and alpha == 2.0:
            return weights * scale, slopes
        return weights * scale, slopes * jnp.exp((2.0 - alpha) * jnp.log(scale))

    def option_gradients(
        self, weights: jax.Array, centred: jax.Array, rows: Rows
    ) -> dict[str, jax.Array]:
        """See `WholeRows`."""
        alpha = self.alpha(rows)
        if not isinstance(alpha, jax.Array):
            return {}
        change = change_of(weights, alpha, expm1) * centred
        (options,) = jax.vjp(self.alpha, self.of_rows(rows))[1](
            jnp.sum(change, axis=0, keepdims=True)
        )
        return options

    def has_weight(self, leaders: jax.Array, rows: Rows) -> jax.Array:
        """See `WholeRows`."""
        alpha = self.alpha(rows)
        slack = (alpha - 1.0) * leaders - rows["shift"]
        # Powers of slack less 1 begin at -1 (see `powers`), for which the first threshold is 0.
        return jnp.max(slack) > -1.0 - first_threshold(alpha)

    def solve(
        self, found: Scores, count: jax.Array, rows: Rows, first_key: jax.Array
    ) -> list[jax.Array]:
        """See `WholeRows`."""
        del first_key
        alpha, places = self.alpha(rows), found.scores.shape[0] * found.scores.shape[1]
        base = (alpha - 1.0) * found.top

        def sweep(values: Ref, tau: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            """Newton's step over all scores or leaders."""
            shift = base + tau

            def add(sums, part, _):
                terms = powers((alpha - 1.0) * part - shift, alpha)
                return tuple(s + by_sublanes(t) for s, t in zip(sums, terms, strict=True))

            def is_needed(leaders):
                return self.has_weight(leaders, {**rows, "shift": shift})

            none = jnp.zeros((SUBLANES, tau.shape[1]), tau.dtype)
            sums = found.fold(values, count, (none, none), add, is_needed)
            total, slope = (jnp.sum(each, axis=0, keepdims=True) for each in sums)
            return newton_step(tau, total, slope, alpha, expm1)

        def unfinished(carry):
            sweeps, _, move, _ = carry
            return (sweeps < MAX_SWEEPS) & (
                jnp.max(is_missing(move, places, alpha).astype(jnp.int32)) > 0
            )

        tau = jnp.full_like(base, first_threshold(alpha))
        tau = jax.lax.fori_loop(0, GROUP_SWEEPS, lambda _, tau: sweep(found.leaders, tau)[0], tau)
        _, tau, _, total = jax.lax.while_loop(
            unfinished,
            lambda carry: (carry[0] + 1, *sweep(found.scores, carry[1])),
            (1, *sweep(found.scores, tau)),
        )
        return [base + tau, 1.0 / jnp.where(total == 0.0, 1.0, total)]


def expm1(y: jax.Array) -> jax.Array:
    """e^y - 1 without jnp.expm1, which TPU kernels lack: by its series where y is small."""
    near = jnp.abs(y) < 0.25
    small, series = jnp.where(near, y, 0.0), jnp.ones_like(y)
    for term in range(8, 1, -1):
        series = 1.0 + small * series / term
    return jnp.where(near, small * series, jnp.exp(y) - 1.0)
