"""Do two draws of dropout agree? R-Drop passes twice and asks for it."""

from typing import Any

import jax

from lm.model.transformer import Batch
from lm.training.regularization.passes import Forward, Pass, compared, symmetric


def rdrop(forward: Forward, coefficient: float) -> Forward:
    """(L_1 + L_2) / 2 + a / 4 (KL(p_1 || p_2) + KL(p_2 || p_1)), of two draws of dropout.

    Half of the loss of R-Drop (2106.14448), so that it is in nats per token; a means the same.

    Args:
      forward: draws dropout by its key.
      coefficient: a, above 0; 0.5 to 5 in the paper.
    """

    def twice(params: Any, batch: Batch, key: jax.Array, step: jax.Array | None = None) -> Pass:
        first = forward(params, batch, key, step)
        second = forward(params, batch, jax.random.fold_in(key, 3), step)
        apart = compared(symmetric, first, second)
        return first._replace(nats=(first.nats + second.nats) / 2 + coefficient / 4 * apart)

    return twice
