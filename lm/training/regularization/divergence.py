"""Compares the predictions of two passes, summed over the positions of a batch, and makes two draws
of dropout agree (R-Drop), or a student and its teacher (distillation).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.model.transformer import Batch
from lm.output.chunked import join, split
from lm.training.loss import ForwardPass, LossFn, Step
from lm.training.random_streams import StepStream
from lm.training.train_state import Params

# Two predictions [N, ...] -> a number for each position, [N].
Divergence = Callable[[jax.Array, jax.Array], jax.Array]


def total_divergence(divergence: Divergence, first: ForwardPass, second: ForwardPass) -> jax.Array:
    """sum_i w_i divergence(prediction of the first, prediction of the second)_i, a scalar.

    In as many chunks as the first has, each computed again in the backward pass.
    """

    def part(head_inputs: Any) -> jax.Array:
        both = zip((first, second), head_inputs, strict=True)
        return divergence(*(each.predict(each.params, own) for each, own in both))

    head_inputs = (first.head_inputs, second.head_inputs)
    if first.chunks == 1:
        found = part(head_inputs)
    else:
        parts = jax.tree.map(lambda x: split(x, first.chunks), head_inputs)
        found = join(jax.lax.map(jax.checkpoint(part), parts), len(first.weights))
    return jnp.sum(found * first.weights)


def symmetric_kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p || q) + KL(q || p) = sum_v (p_v - q_v) (log p_v - log q_v), [N], at least 0.

    Of log-probabilities [N, V] in nats. Numbers [N] are the means of Gaussians of variance 1, as in
    the likelihood of a regression: (p - q)^2.
    """
    if p.ndim == 1:
        return jnp.square(p - q)
    return jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1)


def tempered_kl(temperature: float) -> Divergence:
    """T^2 KL(q^(1/T) || p^(1/T)), [N], of a student's prediction p and a teacher's q.

    Both are flattened by the temperature T, softmax(log p / T), and T^2 keeps the size of the
    gradient (Hinton et al., 1503.02531). Values, of a regression, have no temperature: the squared
    difference, as its own loss is.
    """

    def divergence(p: jax.Array, q: jax.Array) -> jax.Array:
        if p.ndim == 1:
            return jnp.square(p - q)
        p, q = (jax.nn.log_softmax(each / temperature, axis=-1) for each in (p, q))
        # 0 log 0 = 0: a teacher may give outcomes no probability at all.
        nats = jnp.where(q > -jnp.inf, jnp.exp(q) * (q - p), 0.0)
        return temperature**2 * jnp.sum(nats, axis=-1)

    return divergence


def rdrop(plain_loss: LossFn, coefficient: float) -> LossFn:
    """(L_1 + L_2) / 2 + a / 4 (KL(p_1 || p_2) + KL(p_2 || p_1)), of two draws of dropout.

    Half of the loss of R-Drop (2106.14448), so that it is in nats per token; a means the same.

    Args:
      plain_loss: draws dropout by its key.
      coefficient: a, above 0; 0.5 to 5 in the paper.
    """

    def loss(params: Params, batch: Batch, key: jax.Array, step: Step = None) -> ForwardPass:
        first = plain_loss(params, batch, key, step)
        second = plain_loss(params, batch, jax.random.fold_in(key, StepStream.RDROP), step)
        distance = total_divergence(symmetric_kl, first, second)
        return first._replace(nats=(first.nats + second.nats) / 2 + coefficient / 4 * distance)

    return loss


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

    def loss(params: Params, batch: Batch, key: jax.Array, step: Step = None) -> ForwardPass:
        student = student_loss(params, batch, key, step)
        distance = total_divergence(divergence, student, teacher)
        return student._replace(nats=(1.0 - weight) * student.nats + weight * distance)

    return loss
