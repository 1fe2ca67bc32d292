"""The plain softmax head, with capped and scaled logits, the sigsoftmax head, and a softmax over
squared distances from the hidden state to the tokens' vectors.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.logit_transform import Capped, LogitTransform, LogSigmoidAdded, Scaled
from lm.output.pointwise import PointwiseHead


class SoftmaxHead(PointwiseHead):
    """Cross-entropy of softmax(z), z = c tanh((h W' + b) / (t c)).

    Attributes:
      cap: c, bounds the logits (Gemma 2, 2408.00118); None: no tanh.
      temperature: t.
      The others are those of `PointwiseHead`.
    """

    cap: float | None = None
    temperature: float = 1.0

    has_kernel = True

    @property
    def logit_transform(self) -> LogitTransform:
        """Temperature, then cap."""
        if self.cap is not None:
            return Capped(self.cap, self.temperature)
        return LogitTransform() if self.temperature == 1.0 else Scaled(self.temperature)


class SigsoftmaxHead(PointwiseHead):
    """Probabilities e^z sigmoid(z) / sum (Kanai et al. 1805.10829), z = h W' + b.

    The softmax of z + log sigmoid(z) = z - softplus(-z), whose log-probabilities pass the rank of
    the features. Not shift-invariant: far above zero it is the softmax of z, far below that of 2z.
    """

    has_kernel = True

    @property
    def logit_transform(self) -> LogitTransform:
        """See the class."""
        return LogSigmoidAdded()


class GaussianHead(PointwiseHead):
    """Logits -|h - w|^2 / (2 sigma^2): equal Gaussians around the tokens' vectors w.

    |h|^2 is common to all tokens, so this is the softmax of (h . w - |w|^2 / 2) / sigma^2, and is
    computed as that.

    Attributes:
      sigma: width of the Gaussians, above 0.
    """

    sigma: float = 1.0

    @nn.compact
    def raw_logits(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Logits [N, V], up to a number for each row."""
        table = self.table(embedding)
        z = self.project(hidden, table)
        z -= jnp.sum(jnp.square(table.astype(z.dtype)), axis=-1) / 2.0
        return self.add_bias(z / self.sigma**2)
