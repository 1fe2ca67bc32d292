"""What does the plain softmax head compute? lse(z) - z_y over capped and scaled logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lm.output.logit_transform import Phi
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

    @property
    def phi(self) -> Phi:
        """Temperature, then cap."""
        if self.cap is not None:
            return Capped(self.cap, self.temperature)
        return Phi() if self.temperature == 1.0 else Scaled(self.temperature)


@dataclasses.dataclass(frozen=True)
class Scaled(Phi):
    """z / t."""

    temperature: float

    def value(self, z: jax.Array, theta: Any = None) -> jax.Array:
        """See `Phi`."""
        return z / self.temperature

    def slope(self, z: jax.Array, theta: Any = None) -> jax.Array | float:
        """See `Phi`."""
        return 1.0 / self.temperature


@dataclasses.dataclass(frozen=True)
class Capped(Phi):
    """c tanh(z / (t c))."""

    cap: float
    temperature: float

    def value(self, z: jax.Array, theta: Any = None) -> jax.Array:
        """See `Phi`."""
        return self.cap * jnp.tanh(z / (self.temperature * self.cap))

    def slope(self, z: jax.Array, theta: Any = None) -> jax.Array | float:
        """See `Phi`."""
        return (1.0 - jnp.square(jnp.tanh(z / (self.temperature * self.cap)))) / self.temperature
