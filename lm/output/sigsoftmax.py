"""How does a head pass the rank of its features by one more function? With z + log sigmoid(z)."""

import jax
import jax.numpy as jnp

from lm.materialise import materialise
from lm.output.pointwise import PointwiseHead


class SigsoftmaxHead(PointwiseHead):
    """Probabilities e^z sigmoid(z) / sum (Kanai et al. 1805.10829), z = h W' + b.

    The softmax of phi(z) = z + log sigmoid(z) = z - softplus(-z). Not shift-invariant: far above
    zero it is the softmax of z, far below that of 2z.
    """

    def shape(self, z: jax.Array) -> jax.Array:
        """The logits of the softmax with the same probabilities."""
        return _shape(z)


@jax.custom_vjp
def _shape(z: jax.Array) -> jax.Array:
    return _forward(z)[0]


def _forward(z):
    # One exponential serves the value and the slope 1 + sigmoid(-z). log(1 + small) is as good as
    # log1p here: what it loses is below the last digit of z.
    small = materialise(jnp.exp(-jnp.abs(z)))
    return jnp.minimum(z, 2.0 * z) - jnp.log(1.0 + small), (z, small)


def _backward(saved, gradient):
    z, small = saved
    return (gradient * (1.0 + jnp.where(z > 0.0, small, 1.0) / (1.0 + small)),)


_shape.defvjp(_forward, _backward)
