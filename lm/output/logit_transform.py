"""Transforms of single logits, which a loss applies without a pass of their own."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LogitTransform:
    """An increasing function f of every logit; here the identity.

    `logit_stats` asks for it in pieces, so that a loss on f(z) reads and writes logits as often as
    one on z. `params` are parameters that f may have; None where there are none.
    """

    def value(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array:
        """Gives f(z), shaped as z."""
        return z

    def derivative(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array | float:
        """Gives f'(z)."""
        return 1.0

    def exponential(
        self, z: jax.Array, top: jax.Array, params: jax.Array | None = None
    ) -> jax.Array:
        """Gives e^(f(z) - top), where top is at least f(z)."""
        return jnp.exp(self.value(z, params) - top)

    def params_grad(
        self, z: jax.Array, grad: jax.Array, params: jax.Array | None = None
    ) -> jax.Array | None:
        """The gradient of the parameters, given that of f(z), [N, V]."""
        return None


@dataclasses.dataclass(frozen=True)
class Scaled(LogitTransform):
    """z / t."""

    temperature: float

    def value(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array:
        """See `LogitTransform`."""
        return z / self.temperature

    def derivative(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array | float:
        """See `LogitTransform`."""
        return 1.0 / self.temperature


@dataclasses.dataclass(frozen=True)
class Capped(LogitTransform):
    """c tanh(z / (t c))."""

    cap: float
    temperature: float

    def value(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array:
        """See `LogitTransform`."""
        return self.cap * jnp.tanh(z / (self.temperature * self.cap))

    def derivative(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array | float:
        """See `LogitTransform`."""
        return (1.0 - jnp.square(jnp.tanh(z / (self.temperature * self.cap)))) / self.temperature


class LogSigmoidAdded(LogitTransform):
    """z + log sigmoid(z) = min(z, 2z) - log(1 + e^-|z|)."""

    def value(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array:
        """See `LogitTransform`."""
        return jnp.minimum(z, 2.0 * z) - jnp.log1p(jnp.exp(-jnp.abs(z)))

    def derivative(self, z: jax.Array, params: jax.Array | None = None) -> jax.Array | float:
        """See `LogitTransform`; 1 + sigmoid(-z)."""
        return 1.5 - 0.5 * jnp.tanh(0.5 * z)

    def exponential(
        self, z: jax.Array, top: jax.Array, params: jax.Array | None = None
    ) -> jax.Array:
        """See `LogitTransform`; without a logarithm."""
        return jnp.exp(jnp.minimum(z, 2.0 * z) - top) / (1.0 + jnp.exp(-jnp.abs(z)))
