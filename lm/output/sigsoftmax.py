"""How does a head pass the rank of its features by one more function? With z + log sigmoid(z)."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.output.logit_transform import Phi
from lm.output.pointwise import PointwiseHead


class SigsoftmaxHead(PointwiseHead):
    """Probabilities e^z sigmoid(z) / sum (Kanai et al. 1805.10829), z = h W' + b.

    The softmax of phi(z) = z + log sigmoid(z) = z - softplus(-z). Not shift-invariant: far above
    zero it is the softmax of z, far below that of 2z.
    """

    @property
    def phi(self) -> Phi:
        """See the class."""
        return LogSigmoidAdded()


class LogSigmoidAdded(Phi):
    """z + log sigmoid(z) = min(z, 2z) - log(1 + e^-|z|)."""

    def value(self, z: jax.Array, theta: Any = None) -> jax.Array:
        """See `Phi`."""
        return jnp.minimum(z, 2.0 * z) - jnp.log1p(jnp.exp(-jnp.abs(z)))

    def slope(self, z: jax.Array, theta: Any = None) -> jax.Array | float:
        """See `Phi`; 1 + sigmoid(-z)."""
        return 1.5 - 0.5 * jnp.tanh(0.5 * z)

    def exponential(self, z: jax.Array, top: jax.Array, theta: Any = None) -> jax.Array:
        """See `Phi`; without a logarithm."""
        return jnp.exp(jnp.minimum(z, 2.0 * z) - top) / (1.0 + jnp.exp(-jnp.abs(z)))
