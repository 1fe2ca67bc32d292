"""A head that learns a monotone, piecewise linear function of each logit."""

import dataclasses
import itertools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.devices.platform import platform
from lm.output.logit_transform import LogitTransform
from lm.output.pointwise import PointwiseHead

_ONE = float(np.log(np.e - 1.0))  # softplus of it is 1
_ROWS = 8


class PlifHead(PointwiseHead):
    """Softmax of f(z), f piecewise linear, increasing and learned (Ganea et al. 1902.08077).

    f(0) = 0, and f has the slope softplus(a_k) on the k-th of K equal pieces of [-r, r]; the outer
    slopes go on beyond. All slopes are 1 at first, where it is the softmax head. The most likely
    token is that of the softmax.

    Attributes:
      pieces: K. Each costs a little time for every logit.
      reach: r, in nats.
    """

    pieces: int = 8
    reach: float = 12.0

    @property
    def logit_transform(self) -> LogitTransform:
        """See the class."""
        inner = np.linspace(-self.reach, self.reach, self.pieces + 1)[1:-1]
        return PiecewiseLinear((-np.inf, *inner.tolist(), np.inf))

    @nn.compact
    def transform_params(self) -> jax.Array:
        """The slopes of the pieces, [K]."""
        raw = self.param("slopes", nn.initializers.constant(_ONE), (self.pieces,), jnp.float32)
        return jax.nn.softplus(raw)


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear(LogitTransform):
    """sum_k theta_k (clip(z, e_k, e_k+1) - clip(0, e_k, e_k+1)), K pieces between K + 1 edges e.

    Computed as theta_0 z + sum_k (theta_k - theta_k-1) (max(z, e_k) - max(0, e_k)).
    """

    edges: tuple[float, ...]

    def value(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array:
        """See `LogitTransform`; `params` are the slopes theta, [K]."""
        assert params is not None
        value, at_zero = params[0] * z, jnp.zeros((), params.dtype)
        for step, edge in self._steps(params):
            value += step * jnp.maximum(z, edge)
            at_zero += step * max(0.0, edge)
        return (value - at_zero).astype(z.dtype)

    def derivative(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array | float:
        """See `LogitTransform`."""
        assert params is not None
        slope = jnp.full_like(z, params[0])
        for step, edge in self._steps(params):
            slope += jnp.where(z >= edge, step, 0.0).astype(z.dtype)
        return slope

    def params_grad(
        self, z: jax.Array, grad: jax.Array, params: jax.Array | None = None
    ) -> jax.Array:
        """See `LogitTransform`."""
        assert params is not None
        # With clip(z, low, high) = max(z, low) - max(z, high) + high, K + 1 sums serve all pieces.
        factors = [z, *(jnp.maximum(z, edge) for edge in self.edges[1:-1]), jnp.ones_like(z)]
        *above, whole = _sums([grad * factor for factor in factors])
        above.append(jnp.zeros_like(whole))
        slope_grads = []
        for k, (low, high) in enumerate(itertools.pairwise(self.edges)):
            offset = (0.0 if high == np.inf else high) - min(max(0.0, low), high)
            slope_grads.append(above[k] - above[k + 1] + offset * whole)
        return jnp.stack(slope_grads).astype(params.dtype)

    def _steps(self, slopes: jax.Array) -> Iterator[tuple[jax.Array, float]]:
        """The pieces' slopes as steps up from the first, and where each step is."""
        return zip(jnp.diff(slopes), self.edges[1:-1], strict=True)


def _sums(terms: list[jax.Array]) -> list[jax.Array]:
    """The sum of each of several arrays [N, V] that are made of the same ones, in one pass.

    On a CPU sums over `_ROWS` rows come first: so short a loop is unrolled, and then vectorised
    (without, loss and gradients take 1.10 times as long).
    """
    rows, vocab_size = terms[0].shape
    if rows % _ROWS == 0 and platform() == "cpu":
        terms = [term.reshape(-1, _ROWS, vocab_size) for term in terms]
    zeros = [jnp.zeros((), term.dtype) for term in terms]

    def add(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
        return [x + y for x, y in zip(a, b, strict=True)]

    return [jnp.sum(part) for part in jax.lax.reduce(terms, zeros, add, dimensions=(1,))]
