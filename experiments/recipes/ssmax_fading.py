"""The largest weight of softmax and SSMax over ever more inputs (2501.19399)."""

import jax.numpy as jnp
from etils import epath

from lm.softmax import WEIGHTINGS

SEEDS = (0,)  # nothing is random
INPUTS = 10_000
SCALE = 0.43


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """The weight of an input of 3 among inputs of -2."""
    scores = jnp.full(INPUTS, -2.0).at[-1].set(3.0)
    softmax, ssmax = WEIGHTINGS["softmax"].apply, WEIGHTINGS["ssmax"].apply
    return {"softmax": float(softmax(scores)[-1]), "ssmax": float(ssmax(scores, scale=SCALE)[-1])}
