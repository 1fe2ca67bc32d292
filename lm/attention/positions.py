"""How does attention know where a token stands? By rotating queries and keys, or by a slope on the
scores; learned and sinusoidal vectors, which are added to the words, are the model's.
"""

import jax
import jax.numpy as jnp
import numpy as np


def rotate(x: jax.Array, positions: jax.Array, base: float = 10000.0) -> jax.Array:
    """Rotary positions (RoFormer, 2104.09864): pair (i, i + K/2) turns by position * base^(-2i/K).

    Args:
      x: [B, L, H, K], K even.
      positions: [B, L] integers.
      base: longest wavelength, in positions, divided by 2 pi.

    Returns:
      [B, L, H, K]; dot products depend on differences of positions only.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-np.arange(half, dtype=np.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """ALiBi's slopes [H]: 2^(-8/H), 2^(-16/H), ..., 2^-8 (Press et al. 2108.12409).

    For H not a power of two, the paper's code interleaves; here the geometric series is used for
    every H, as its formula says.
    """
    return 2.0 ** (-8.0 * np.arange(1, heads + 1, dtype=np.float32) / heads)


def sinusoids(positions: jax.Array, features: int) -> jax.Array:
    """Sinusoidal vectors [..., D]: sin and cos of position / 10000^(2i/D) (1706.03762), D even."""
    half = features // 2
    angles = positions[..., None] * 10000.0 ** (-np.arange(half, dtype=np.float32) / half)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
