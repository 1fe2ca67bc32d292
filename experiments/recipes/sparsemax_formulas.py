"""Sparsemax and its loss beside the closed forms of 1602.02068, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lm.output.sparse import fenchel_young
from lm.softmax import WEIGHTINGS

SEEDS = (0, 1, 2)
ROWS, SIZE = 256, 128


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """Largest differences of random rows, of scores with standard deviations from 0.1 to 10."""
    rng = np.random.default_rng(seed)
    sparsemax = WEIGHTINGS["sparsemax"].apply
    scores = rng.normal(size=(ROWS, SIZE)) * 10 ** rng.uniform(-1, 1, (ROWS, 1))
    ours = np.asarray(sparsemax(jnp.asarray(scores, jnp.float32)), np.float64)
    rounded = scores.astype(np.float32).astype(np.float64)  # what was given to it
    margin = np.append(rng.uniform(-4, 4, ROWS), [-1.0, 1.0])
    pairs = jnp.asarray(np.stack([margin, np.zeros(len(margin))], axis=1), jnp.float32)
    loss = np.asarray(fenchel_young(pairs, jnp.zeros(len(margin), int), 2.0))
    jacobians = jax.vmap(jax.jacobian(sparsemax))(jnp.asarray(scores[:16], jnp.float32))
    return {
        "projection": np.abs(ours - projection(rounded)).max(),
        "two_scores": np.abs(sparsemax(pairs)[:, 0] - np.clip((margin + 1) / 2, 0, 1)).max(),
        "huber": np.abs(loss - huber(margin)).max(),
        "jacobian": np.abs(jacobians - jacobian(ours[:16])).max(),
    }


def projection(scores: np.ndarray) -> np.ndarray:
    """The simplex's nearest points to rows: scores above the threshold of the largest support."""
    falling = -np.sort(-scores, axis=1)
    sums, places = np.cumsum(falling, axis=1), np.arange(1, scores.shape[1] + 1)
    support = (1 + places * falling > sums).sum(axis=1, keepdims=True)
    threshold = (np.take_along_axis(sums, support - 1, axis=1) - 1) / support
    return np.maximum(scores - threshold, 0)


def huber(margin: np.ndarray) -> np.ndarray:
    """The loss of the first of two classes whose score is `margin` above the other's."""
    return np.where(margin >= 1, 0, np.where(margin <= -1, -margin, (margin - 1) ** 2 / 4))


def jacobian(weights: np.ndarray) -> np.ndarray:
    """Diag(s) - s s' / |S| of rows of weights, s the indicator of the support S; [N, S, S]."""
    s = (weights > 0).astype(float)
    outer = s[:, :, None] * s[:, None, :] / s.sum(axis=1)[:, None, None]
    return s[:, :, None] * np.eye(s.shape[1]) - outer
