"""Exponents x of the softmax-like weightings, e^x / sum e^x, as functions of each score by itself.

All take scores z of shape [..., S], 0 where they are masked, and n [..., 1], the number of visible
places of the row, which some have no use for.
"""

import math

import jax
import jax.numpy as jnp

# Below it e^z is under the last digits of 1 in float32.
_SERIES = -20.0
# So near to 0 no score counts; its inverse is finite in float32.
_LEAST = 1e-20


def softmax(z: jax.Array, n: jax.Array | None = None) -> jax.Array:
    """Gives z."""
    del n
    return z


def temperature(
    z: jax.Array, n: jax.Array | None = None, *, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """Gives z / t."""
    del n
    return z / temperature


def softcap(
    z: jax.Array, n: jax.Array | None = None, *, cap: float | jax.Array = 50.0
) -> jax.Array:
    """Gives c tanh(z / c)."""
    del n
    return cap * jnp.tanh(z / cap)


def log_length(z: jax.Array, n: jax.Array, *, reference_length: float = 512.0) -> jax.Array:
    """Gives z log n / log n0."""
    return z * (jnp.log(n) / math.log(reference_length))


def ssmax(z: jax.Array, n: jax.Array, *, scale: jax.Array | float) -> jax.Array:
    """Gives a z log n."""
    return z * scale * jnp.log(n)


def taylor(z: jax.Array, n: jax.Array | None = None) -> jax.Array:
    """Gives log(1 + z + z^2/2), whose argument is at least 1/2."""
    del n
    return jnp.log(taylor_series(z))


def taylor_series(z: jax.Array) -> jax.Array:
    """Gives 1 + z + z^2/2, the terms of `taylor`."""
    return 1.0 + z + 0.5 * z * z


def softplus_l1(z: jax.Array, n: jax.Array | None = None) -> jax.Array:
    """Gives log softplus(z), which is z for very negative z, where softplus itself would be 0."""
    del n
    return _log_softplus(z)


@jax.custom_jvp
def _log_softplus(z: jax.Array) -> jax.Array:
    """Gives log log(1 + e^z), by its series z - e^z / 2 where e^z is small."""
    small = jnp.exp(jnp.minimum(z, _SERIES))
    return jnp.where(z < _SERIES, z - 0.5 * small, jnp.log(_softplus(z)))


@_log_softplus.defjvp
def _log_softplus_jvp(primals, tangents):
    """Gives sigmoid(z) / softplus(z) dz, which is (1 - e^z / 2) dz where e^z is small."""
    (z,), (direction,) = primals, tangents
    near = jnp.maximum(z, _SERIES)
    slope = jax.nn.sigmoid(near) / _softplus(near)
    return _log_softplus(z), direction * slope


def _softplus(z: jax.Array) -> jax.Array:
    return jnp.maximum(z, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(z)))


def cog(z: jax.Array, n: jax.Array | None = None) -> jax.Array:
    """Gives abs z, with the gradient of +z at 0."""
    del n
    return sign(z) * z


def softpick(z: jax.Array, n: jax.Array | None = None) -> jax.Array:
    """Gives log abs(e^z - 1), its series log abs z + z/2 + z^2/24 - z^4/2880 + z^6/181440 near 0.

    A score of 0 is taken for one so small that its term is lost in any sum, so that the gradient
    of the term, which is finite, does not become that of the logarithm times zero.
    """
    del n
    z = jnp.where(jnp.abs(z) < _LEAST, _LEAST, z)
    near = jnp.abs(z) < 1.0
    small, large = jnp.where(near, z, 1.0), jnp.where(near, 1.0, z)
    y = small * small
    series = small * (0.5 + small * (1 / 24 - y * (1 / 2880 - y * (1 / 181440))))
    far = jnp.maximum(large, 0.0) + jnp.log1p(-jnp.exp(-jnp.abs(large)))
    return jnp.where(near, jnp.log(jnp.abs(small)) + series, far)


def sign(z: jax.Array) -> jax.Array:
    """The factor of `cog`'s weights: the sign of z; that of 0 is +1."""
    return jnp.where(z < 0, -1.0, 1.0)


def is_positive(z: jax.Array) -> jax.Array:
    """The factor of `softpick`'s weights: 1 where z is above 0, and else 0."""
    return jnp.where(z > 0, 1.0, 0.0)
