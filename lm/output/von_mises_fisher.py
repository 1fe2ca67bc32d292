"""A head that reads the hidden state as a direction on the sphere, surer the longer it is."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.base import Head

_STEPS = 64  # of the continued fraction, from the end, where it begins with Amos's bound
_LARGE = 32  # orders from which Debye's expansion has float32's digits


class VonMisesFisherHead(Head):
    """loss = -log C_D(|h|) - h . w_y / |w_y|, a density on the sphere (Kumar, Tsvetkov 1812.04616).

    C_D(k) = k^(D/2-1) / ((2 pi)^(D/2) I_{D/2-1}(k)). A position costs its target only. The tokens'
    vectors are not trained by the loss, which would pull all of them into one point: tie them, or
    take them from another run. The likelihood is that of a token given that the direction is one of
    the tokens': softmax(h . w / |w|); the training loss is a density in nats, and may be negative.
    """

    @property
    def training_logits(self) -> int:
        """None of size V."""
        return 1

    @nn.compact
    def directions(self, embedding: jax.Array | None = None) -> jax.Array:
        """The tokens' directions, [V, D], without gradient."""
        table = jax.lax.stop_gradient(self.table(embedding))
        table = table.astype(jnp.promote_types(table.dtype, jnp.float32))
        return table / jnp.maximum(jnp.linalg.norm(table, axis=-1, keepdims=True), 1e-12)

    def logits(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Cosines times |h|, [N, V]."""
        return self.project(hidden, self.directions(embedding))

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        return jax.nn.log_softmax(self.logits(hidden, embedding), axis=-1)

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]."""
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        vectors = self.directions(embedding)[targets].astype(wide)
        hidden = hidden.astype(wide)
        # The floor keeps the norm's gradient finite at zero.
        length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(hidden), axis=-1), 1e-12))
        along = jnp.einsum("nd,nd->n", hidden, vectors)
        return -log_normaliser(length, self.d_model) - along


def _log_normaliser(length: jax.Array, features: int) -> jax.Array:
    """Gives log C_D(k) for k > 0, any shape; its derivative is -I_{D/2}(k) / I_{D/2-1}(k)."""
    order = features / 2.0 - 1.0
    constant = -features / 2.0 * math.log(2.0 * math.pi)
    return constant + order * jnp.log(length) - log_bessel(length, order)


def _forward(length, features):
    return _log_normaliser(length, features), length


def _backward(features, length, gradient):
    return (-gradient * bessel_ratios(length, features / 2.0 - 1.0, 1)[0],)


log_normaliser = jax.custom_vjp(_log_normaliser, nondiff_argnums=(1,))
log_normaliser.defvjp(_forward, _backward)


def bessel_ratios(x: jax.Array, order: float, count: int) -> list[jax.Array]:
    """I_{v+1}(x) / I_v(x) for v = order, order + 1, ..., as many as asked; x > 0, order > -1.

    By r_v = 1 / (2 (v + 1) / x + r_{v+1}) from far behind, where Amos's bound begins it.
    """
    last = order + count - 1 + _STEPS
    ratio = x / (last + 0.5 + jnp.sqrt(x * x + (last + 1.5) ** 2))
    ratios = []
    for step in range(_STEPS + count - 1, -1, -1):
        ratio = 1.0 / (2.0 * (order + step + 1.0) / x + ratio)
        if step < count:
            ratios.append(ratio)
    return ratios[::-1]


def log_bessel(x: jax.Array, order: float) -> jax.Array:
    """Gives log I_v(x), for x > 0 and v > -1: Debye's expansion from an order where it is exact
    enough, and down to v by ratios.
    """
    below = max(0, math.ceil(_LARGE - order))
    found = _debye(x, order + below)
    return found - sum(jnp.log(ratio) for ratio in bessel_ratios(x, order, below))


def _debye(x: jax.Array, order: float) -> jax.Array:
    """Gives log I_v(x) for large v, uniformly in x (Abramowitz, Stegun 9.7.7), three terms."""
    z = x / order
    root = jnp.sqrt(1.0 + z * z)
    t = 1.0 / root
    u1 = (3.0 * t - 5.0 * t**3) / 24.0
    u2 = (81.0 * t**2 - 462.0 * t**4 + 385.0 * t**6) / 1152.0
    u3 = (30375.0 * t**3 - 369603.0 * t**5 + 765765.0 * t**7 - 425425.0 * t**9) / 414720.0
    series = jnp.log1p(u1 / order + u2 / order**2 + u3 / order**3)
    exponent = order * (root + jnp.log(z / (1.0 + root)))
    return exponent - 0.5 * jnp.log(2.0 * math.pi * order * root) + series
