"""Distils a teacher: the loss of a student that also predicts what the teacher predicts."""

import jax

from lm.model.transformer import Batch
from lm.training.loss import ForwardPass, LossFn
from lm.training.regularization.divergence import tempered_kl, total_divergence
from lm.training.train_state import Params


def distillation(
    student_loss: LossFn, teacher: ForwardPass, weight: float, temperature: float
) -> LossFn:
    """(1 - w) L + w T^2 KL(q^(1/T) || p^(1/T)) of a student p and a teacher q; see `tempered_kl`.

    Args:
      student_loss: L.
      teacher: its pass over the same batch, which gets no gradient.
      weight: w, above 0, at most 1.
      temperature: T, above 0.
    """
    divergence, teacher = tempered_kl(temperature), teacher.stop_gradient()

    def loss(
        params: Params, batch: Batch, key: jax.Array, step: jax.Array | None = None
    ) -> ForwardPass:
        student = student_loss(params, batch, key, step)
        distance = total_divergence(divergence, student, teacher)
        return student._replace(nats=(1.0 - weight) * student.nats + weight * distance)

    return loss
