"""Which weightings can be exactly zero? The entmax family, by a threshold instead of a sum.

The alpha-entmax of a row is p = relu((alpha-1) s - tau)^(1/(alpha-1)) with the threshold tau that
makes it sum to one (Peters, Niculae, Martins 1905.05702). The sum is convex and decreasing in tau,
so Newton's method from the left, tau = max - 1, rises monotonically to the root and needs no sort.
"""

import functools

import jax
import jax.numpy as jnp

from lm.softmax.weighting import divide_by_sum, row_maximum, visible_scores

# Newton's steps roughly double the correct digits; sparsemax ends when its support is found. The
# loop stops when no row moves, in practice after 4 to 8 sweeps.
_MAX_SWEEPS = 40


def sparsemax(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives relu(s - tau), the nearest point of the simplex (Martins, Astudillo 1602.02068).

    The Jacobian is diag(1_S) - 1_S 1_S' / |S| on the support S.
    """
    return _entmax(visible_scores(scores, where), 2.0).astype(scores.dtype)


def entmax15(scores: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Gives relu(s/2 - tau)^2, between softmax and sparsemax (Peters et al. 1905.05702)."""
    return _entmax(visible_scores(scores, where), 1.5).astype(scores.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entmax(scores: jax.Array, alpha: float) -> jax.Array:
    z = (alpha - 1.0) * (scores - row_maximum(scores))
    exponent = 1.0 / (alpha - 1.0)

    def newton(tau: jax.Array) -> jax.Array:
        slack = jax.nn.relu(z - tau)
        excess = jnp.sum(_power(slack, exponent), axis=-1, keepdims=True) - 1.0
        slopes = jnp.where(slack > 0, _power(slack, exponent - 1.0), 0.0)
        slope = exponent * jnp.sum(slopes, axis=-1, keepdims=True)
        return tau + jax.nn.relu(divide_by_sum(excess, slope))

    def unfinished(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        sweep, before, tau = carry
        return (sweep < _MAX_SWEEPS) & jnp.any(tau > before)

    def sweep_once(carry):
        sweep, _, tau = carry
        return sweep + 1, tau, newton(tau)

    start = jnp.full_like(z[..., :1], -1.0)
    _, _, tau = jax.lax.while_loop(unfinished, sweep_once, (jnp.array(0), start - 1.0, start))
    weights = _power(jax.nn.relu(z - tau), exponent)
    return divide_by_sum(weights, jnp.sum(weights, axis=-1, keepdims=True))


@_entmax.defjvp
def _entmax_jvp(alpha, primals, tangents):
    (scores,), (direction,) = primals, tangents
    weights = _entmax(scores, alpha)
    support = weights > 0
    # p^(2-alpha) on the support; the inner where keeps 0^0 and its gradient out of the way.
    sensitivity = jnp.where(support, _power(jnp.where(support, weights, 1.0), 2.0 - alpha), 0.0)
    total = jnp.sum(sensitivity, axis=-1, keepdims=True)
    mean = divide_by_sum(jnp.sum(sensitivity * direction, axis=-1, keepdims=True), total)
    return weights, sensitivity * (direction - mean)


def _power(base: jax.Array, exponent: float) -> jax.Array:
    """`base ** exponent`, by products or a root where the exponent allows."""
    if exponent == 0.5:
        return jnp.sqrt(base)
    return base ** (int(exponent) if exponent == int(exponent) else exponent)
