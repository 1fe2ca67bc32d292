"""Compares the predictions of two passes: a divergence summed over the positions of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.output.chunked import join, split
from lm.training.loss import ForwardPass

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
        parts = tuple(split(each, first.chunks) for each in head_inputs)
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
