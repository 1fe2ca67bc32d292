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


@jax.custom_jvp
def _shape(z: jax.Array) -> jax.Array:
    return jnp.minimum(z, 2.0 * z) - jnp.log1p(materialise(jnp.exp(-jnp.abs(z))))


@_shape.defjvp
def _shape_jvp(primals, tangents):
    """Phi' = 1 + sigmoid(-z)."""
    (z,), (direction,) = primals, tangents
    return _shape(z), direction * (1.0 + jax.nn.sigmoid(-z))
