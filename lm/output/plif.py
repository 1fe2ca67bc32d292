"""Can the output's nonlinearity be learned? As a monotone function of each logit, in pieces."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.materialise import materialise
from lm.output.pointwise import PointwiseHead

_ONE = float(np.log(np.e - 1.0))  # softplus of it is 1


class PlifHead(PointwiseHead):
    """Softmax of f(z), f piecewise linear, increasing and learned (Ganea et al. 1902.08077).

    f(0) = 0, and f has the slope softplus(a_k) on the k-th of K equal pieces of [-r, r]; the outer
    slopes go on beyond. All slopes are 1 at first, where it is the softmax head. The most likely
    word is that of the softmax.

    Attributes:
      pieces: K. Each costs a little time for every logit.
      reach: r, in nats.
    """

    pieces: int = 8
    reach: float = 12.0

    def shape(self, z: jax.Array) -> jax.Array:
        """Gives f(z)."""
        raw = self.param("slopes", nn.initializers.constant(_ONE), (self.pieces,), jnp.float32)
        inner = np.linspace(-self.reach, self.reach, self.pieces + 1)[1:-1]
        edges = (-np.inf, *inner.tolist(), np.inf)
        return piecewise(z, jax.nn.softplus(raw).astype(z.dtype), edges)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def piecewise(z: jax.Array, slopes: jax.Array, edges: tuple[float, ...]) -> jax.Array:
    """sum_k slopes_k (clip(z, edges_k, edges_k+1) - clip(0, edges_k, edges_k+1)), as z [N, V]."""
    parts = zip(slopes, edges[:-1], edges[1:], strict=True)
    return sum((slope * _part(z, low, high) for slope, low, high in parts), jnp.zeros_like(z))


def _part(z: jax.Array, low: float, high: float) -> jax.Array:
    return jnp.clip(z, low, high) - min(max(0.0, low), high)


def _forward(z, slopes, edges):
    return materialise(piecewise(z, slopes, edges)), (z, slopes)


def _backward(edges, saved, gradient):
    z, slopes = saved
    # The pieces' slopes as steps up from the first.
    slope = slopes[0]
    for step, edge in zip(jnp.diff(slopes), edges[1:-1], strict=True):
        slope += jnp.where(z >= edge, step, 0.0)
    # With clip(z, low, high) = max(z, low) - max(z, high) + high, K + 1 sums serve all pieces. One
    # reduction of several operands makes one pass, and rows of it are vectorised.
    inner = edges[1:-1]
    factors = [z, *(jnp.maximum(z, edge) for edge in inner), jnp.ones_like(z)]
    zeros = [jnp.zeros((), z.dtype)] * len(factors)
    sums = jax.lax.reduce(
        [gradient * factor for factor in factors],
        zeros,
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        dimensions=(1,),
    )
    *above, whole = [jnp.sum(total) for total in sums]
    above.append(jnp.zeros_like(whole))
    of_slopes = []
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        offset = (0.0 if high == np.inf else high) - min(max(0.0, low), high)
        of_slopes.append(above[k] - above[k + 1] + offset * whole)
    return gradient * slope, jnp.stack(of_slopes)


piecewise.defvjp(_forward, _backward)
