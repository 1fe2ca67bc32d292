"""Measures the share of the loss's gradient that passes the head: of the gradient in the V logits,
the part in the D directions of the head's Jacobian reaches the layers below.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.devices.hosts import to_host
from lm.evaluation.diagnostics.spectrum import NOISE

_ENTRIES = 2**24  # of the derivatives computed at a time


def surviving_shares(
    log_probs: Callable[[Any, jax.Array], jax.Array],
    params: Mapping[str, Any],
    hidden: np.ndarray,
    targets: np.ndarray,
) -> np.ndarray:
    """|P g| / |g| for each context, [n], from 0 to 1 (Godey and Artzi 2603.10145).

    g = p - e_y is the gradient of -log p(y) in the logits, [V], and P projects onto the span of the
    Jacobian of the logits in the hidden state, [V, D]: for a linear head, onto the columns of W. It
    is the part of g that the head passes down, at any scale of W; a random g would keep
    sqrt(D / V). Logits are log p up to a constant, so both are taken without their mean over
    tokens, for every head.

    One Jacobian [V, D], of one context, is in memory at a time.

    Args:
      log_probs: `log_probs(params, state)` of one context, [D] -> [V], in nats.
      params: its parameters.
      hidden: [n, D].
      targets: [n].
    """

    @jax.jit
    def parts(params: Mapping[str, Any], state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities [V] and their derivatives [D, V]."""
        values, pull = jax.vjp(lambda state: log_probs(params, state), state)

        def push(direction: jax.Array) -> jax.Array:
            # Heads with a custom gradient have no forward mode; the transpose of the transpose,
            # which is linear, is the forward derivative.
            return jax.vjp(pull, jnp.zeros_like(values))[1]((direction,))[0]

        directions = jnp.eye(state.size, dtype=state.dtype)
        return values, jax.lax.map(push, directions, batch_size=max(1, _ENTRIES // values.size))

    shares = []
    for state, target in zip(hidden, targets, strict=True):
        found = map(to_host, parts(params, state))
        values, derivatives = (part.astype(np.float64) for part in found)
        gradient = np.exp(values)
        gradient[target] -= 1.0
        shares.append(share_in_span(derivatives, gradient))
    return np.array(shares)


def share_in_span(vectors: np.ndarray, gradient: np.ndarray) -> float:
    """|P g| / |g|, P the projection onto the span of vectors [D, V] less their means; g sums to 0.

    Directions with a singular value below `NOISE` times the largest are rounding errors.
    """
    norm = float(np.linalg.norm(gradient))
    if norm == 0:
        return 0.0
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    # With J' = Q R and R = U S V', the coordinates of g in the span are S^-1 V' J g.
    _, singular, turned = np.linalg.svd(np.linalg.qr(centred.T, mode="r"))
    kept = singular > NOISE * singular[0]
    coordinates = (turned[: len(singular)] @ (centred @ gradient))[kept] / singular[kept]
    return min(1.0, float(np.linalg.norm(coordinates)) / norm)
