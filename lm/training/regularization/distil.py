"""What does a teacher say of the same batch? Distillation asks the student to say it too."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.model.transformer import Batch
from lm.training.regularization.passes import Forward, Measure, Pass, compared


def distilled(forward: Forward, said: Pass, weight: float, temperature: float) -> Forward:
    """(1 - w) L + w T^2 KL(q^(1/T) || p^(1/T)) of a student p and a teacher q.

    Both distributions are flattened by the temperature T, softmax(log p / T), and T^2 keeps the
    size of the gradient (Hinton et al., 1503.02531). Values, of a regression, have no temperature:
    the squared difference, as its own loss is.

    Args:
      forward: the student's pass.
      said: the teacher's over the same batch, which gets no gradient.
      weight: w, above 0, at most 1.
      temperature: T, above 0.
    """
    measure, said = divergence(temperature), said.fixed()

    def taught(params: Any, batch: Batch, key: jax.Array, step: jax.Array | None = None) -> Pass:
        student = forward(params, batch, key, step)
        apart = compared(measure, student, said)
        return student._replace(nats=(1.0 - weight) * student.nats + weight * apart)

    return taught


def divergence(temperature: float) -> Measure:
    """T^2 KL(q^(1/T) || p^(1/T)), [N], of what student and teacher say: see `distilled`."""

    def measure(p: jax.Array, q: jax.Array) -> jax.Array:
        if p.ndim == 1:
            return jnp.square(p - q)
        p, q = (jax.nn.log_softmax(each / temperature, axis=-1) for each in (p, q))
        # 0 log 0 = 0: a teacher may give outcomes no probability at all.
        nats = jnp.where(q > -jnp.inf, jnp.exp(q) * (q - p), 0.0)
        return temperature**2 * jnp.sum(nats, axis=-1)

    return measure
