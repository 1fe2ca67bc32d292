"""How are logits shaped one by one without a pass of their own? Next to the exponential."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Phi:
    """An increasing function of every logit; here the identity.

    `statistics` asks for it in pieces, so that a loss on phi(z) reads and writes logits as often as
    one on z. `theta` are parameters that phi may have, a pytree; None where there are none.
    """

    def value(self, z: jax.Array, theta: Any = None) -> jax.Array:
        """Gives phi(z), shaped as z."""
        return z

    def slope(self, z: jax.Array, theta: Any = None) -> jax.Array | float:
        """Gives phi'(z)."""
        return 1.0

    def exponential(self, z: jax.Array, top: jax.Array, theta: Any = None) -> jax.Array:
        """Gives e^(phi(z) - top), where top is at least phi(z)."""
        return jnp.exp(self.value(z, theta) - top)

    def of_theta(self, z: jax.Array, gradient: jax.Array, theta: Any = None) -> Any:
        """The gradient of theta, given that of phi(z), [N, V]."""
        return None
