"""The 1.5-entmax, its loss and its gradient beside the formulas of 1905.05702, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lm.output.sparse import fenchel_young
from lm.softmax import WEIGHTINGS

SEEDS = (0, 1, 2)
ROWS, SIZE, ALPHA = 256, 128, 1.5


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """Largest differences of random rows, of scores with standard deviations from 0.1 to 10."""
    rng = np.random.default_rng(seed)
    entmax = WEIGHTINGS["entmax15"].apply
    scores = rng.normal(size=(ROWS, SIZE)) * 10 ** rng.uniform(-1, 1, (ROWS, 1))
    given = jnp.asarray(scores, jnp.float32)
    ours = np.asarray(entmax(given), np.float64)
    margin = np.append(rng.uniform(-4, 4, ROWS), [-2.0, 2.0])
    pairs = jnp.asarray(np.stack([margin, np.zeros(len(margin))], axis=1), jnp.float32)
    targets = jnp.asarray(rng.integers(0, SIZE, ROWS))
    slope = jax.grad(lambda z: jnp.sum(fenchel_young(z, targets, ALPHA)))(given)
    jacobians = jax.vmap(jax.jacobian(entmax))(given[:16])
    apart = np.asarray(entmax(jnp.array([[2.0, 0.0], [1.99, 0.0]])))
    return {
        "threshold": np.abs(ours - by_bisection(np.asarray(given, np.float64))).max(),
        "two_scores": np.abs(entmax(pairs)[:, 0] - two_scores(margin)).max(),
        "saturation": float(apart[0, 1] == 0 and apart[1, 1] > 0),
        "loss_gradient": np.abs(slope - (ours - np.eye(SIZE)[np.asarray(targets)])).max(),
        "jacobian": np.abs(jacobians - jacobian(ours[:16])).max(),
    }


def by_bisection(scores: np.ndarray) -> np.ndarray:
    """[(alpha - 1) z - tau]_+^(1 / (alpha - 1)), with tau such that rows sum to one."""
    scaled = (ALPHA - 1) * (scores - scores.max(axis=1, keepdims=True))
    low, high = np.full((len(scores), 1), -1.0), np.zeros((len(scores), 1))
    for _ in range(60):
        middle = (low + high) / 2
        total = (np.maximum(scaled - middle, 0) ** (1 / (ALPHA - 1))).sum(axis=1, keepdims=True)
        low, high = np.where(total > 1, middle, low), np.where(total > 1, high, middle)
    return np.maximum(scaled - low, 0) ** (1 / (ALPHA - 1))


def two_scores(margin: np.ndarray) -> np.ndarray:
    """The weight of the first of two scores, `margin` above the other: the formula solved for two.

    With u = t / 2 and |u| <= 1, (u - tau)^2 + tau^2 = 1 has tau = (u - sqrt(2 - u^2)) / 2.
    """
    u = np.clip(margin / 2, -1, 1)
    return ((u + np.sqrt(2 - u**2)) / 2) ** 2


def jacobian(weights: np.ndarray) -> np.ndarray:
    """Diag(s) - s s' / sum(s) of rows of weights p, s = p^(2 - alpha) on the support; [N, S, S]."""
    s = np.where(weights > 0, weights ** (2 - ALPHA), 0)
    outer = s[:, :, None] * s[:, None, :] / s.sum(axis=1)[:, None, None]
    return s[:, :, None] * np.eye(s.shape[1]) - outer
