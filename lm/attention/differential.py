"""Differential attention: the weights of one attention are subtracted from another's."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.base import LayerContext, Mechanism
from lm.attention.mask import Mask
from lm.attention.norms import RMSNorm
from lm.attention.scores import score_attention


class DifferentialAttention(Mechanism):
    """(weighting(q1.k1) - lambda weighting(q2.k2)) v, normalised per head (2410.05258).

    The even places of queries and keys are the first pair and the odd ones the second, which keeps
    the pairs that rotary positions turn together; scores are divided by sqrt(K/2). In each layer

      lambda = exp(a1.b1) - exp(a2.b2) + lambda_init,  a, b [K/2] learned, from normal(0.1),

    and the context, its root mean square normalised over the head, is scaled by 1 - lambda_init.
    The paper lets lambda_init grow with depth, and finds a constant 0.8 about as good; here it is a
    constant. With lambda_init 0, head_norm off and a, b zero, it is plain attention of q1 and k1.

    Attributes:
      lambda_init: 0 .. 1 (1 excluded).
      head_norm: normalises and scales each head's context.
    """

    scores_alone = True

    lambda_init: float = 0.8
    head_norm: bool = True

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`; K must be even, and a multiple of 4 with rotary positions."""
        half = query.shape[3] // 2
        normal = nn.initializers.normal(0.1)
        names = ("query_first", "key_first", "query_second", "key_second")
        a1, b1, a2, b2 = (self.param(name, normal, (half,)) for name in names)
        share = jnp.exp(a1 @ b1) - jnp.exp(a2 @ b2) + self.lambda_init

        scores = score_attention(self)
        dtype = jnp.promote_types(value.dtype, jnp.float32)
        first, second = (
            scores(query[..., i::2], key[..., i::2], value, mask, layer).astype(dtype)
            for i in range(2)
        )
        context = first - share * second
        if self.head_norm:
            context = (1.0 - self.lambda_init) * RMSNorm(name="head_norm")(context)
        return context.astype(value.dtype)
