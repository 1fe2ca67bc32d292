"""In what type are gradients summed? In float32 at least, whatever that of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp


def wide_zeros(params: Any) -> Any:
    """Zeros of the parameters' shapes, where a sum of their gradients begins."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, "float32")), params)


def plus(total: Any, new: Any, share: float = 1.0) -> Any:
    """The total and a share of what is new, of the total's types."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype) * share, total, new)
