"""Makes two draws of dropout agree (R-Drop)."""

import jax

from lm.model.transformer import Batch
from lm.training.loss import ForwardPass, LossFn
from lm.training.random_streams import StepStream
from lm.training.regularization.divergence import symmetric_kl, total_divergence
from lm.training.train_state import Params


def rdrop(plain_loss: LossFn, coefficient: float) -> LossFn:
    """(L_1 + L_2) / 2 + a / 4 (KL(p_1 || p_2) + KL(p_2 || p_1)), of two draws of dropout.

    Half of the loss of R-Drop (2106.14448), so that it is in nats per token; a means the same.

    Args:
      plain_loss: draws dropout by its key.
      coefficient: a, above 0; 0.5 to 5 in the paper.
    """

    def loss(
        params: Params, batch: Batch, key: jax.Array, step: jax.Array | None = None
    ) -> ForwardPass:
        first = plain_loss(params, batch, key, step)
        second = plain_loss(params, batch, jax.random.fold_in(key, StepStream.RDROP), step)
        distance = total_divergence(symmetric_kl, first, second)
        return first._replace(nats=(first.nats + second.nats) / 2 + coefficient / 4 * distance)

    return loss
