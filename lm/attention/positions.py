"""Position embeddings within attention: rotary ones, and biases of scores by distance (ALiBi, T5);
and sinusoidal vectors.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


def apply_rotary(x: jax.Array, positions: jax.Array, theta: float = 10000.0) -> jax.Array:
    """Rotary positions (RoFormer, 2104.09864): pair (i, i + K/2) turns by position * theta^(-2i/K).

    Args:
      x: [B, L, H, K], K even.
      positions: [B, L] integers.
      theta: longest wavelength, in positions, divided by 2 pi.

    Returns:
      [B, L, H, K]; dot products depend on differences of positions only.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-np.arange(half, dtype=np.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """ALiBi's slopes [H]: 2^(-8/H), 2^(-16/H), ..., 2^-8 (Press et al. 2108.12409).

    For H not a power of two, the paper's code interleaves; here the geometric series is used for
    every H, as its formula says.
    """
    return 2.0 ** (-8.0 * np.arange(1, heads + 1, dtype=np.float32) / heads)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AlibiBias:
    """-slope * |distance|: ALiBi's addition to scores (2108.12409).

    Attributes:
      slopes: [H], as `alibi_slopes` has them.
    """

    slopes: jax.Array | np.ndarray

    def __call__(self, distance: jax.Array) -> jax.Array:
        """Query's position minus key's, [B, 1, n, S] -> [B, H, n, S]."""
        return -jnp.asarray(self.slopes)[:, None, None] * jnp.abs(distance)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """T5's relative positions (1910.10683): a learned number for each head and bucket of distances.

    Half of a side's buckets hold one distance each, 0, 1, 2, ...; the others grow by a constant
    factor up to `max_distance`, and the last takes all beyond. Keys before and after the query have
    half of the buckets each, where both are seen.

    Attributes:
      table: [R, H], R buckets, even; a multiple of 4 where both sides are seen.
      max_distance: the distance from which on all is one bucket; above the number of a side's
        buckets.
      causal: no key stands after the query, and so there is one side.
    """

    table: jax.Array
    max_distance: int = dataclasses.field(metadata={"static": True})
    causal: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, distance: jax.Array) -> jax.Array:
        """Query's position minus key's, [B, 1, n, S] -> [B, H, n, S]."""
        side = self.table.shape[0] if self.causal else self.table.shape[0] // 2
        before = bucket_of_distance(side, self.max_distance)
        after = np.zeros_like(before) if self.causal else before + side
        # By distance from -max_distance to max_distance.
        by_distance = self.table[np.concatenate([after[:0:-1], before])]
        place = jnp.clip(distance[:, 0], -self.max_distance, self.max_distance) + self.max_distance
        return jnp.moveaxis(by_distance[place], -1, 1)


PositionBias = AlibiBias | RelativeBias


def bucket_of_distance(buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance 0 .. max_distance, in order, of one side's `buckets`.

    With e = buckets / 2: d below e, and from there on
    e + floor(e log(d / e) / log(max_distance / e)), at most buckets - 1; in float32, as T5 has it.
    """
    exact = buckets // 2
    distance = np.arange(max_distance + 1)
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    grown = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + grown.astype(np.int32), buckets - 1)
    return np.where(distance < exact, distance, far)


def sinusoidal(positions: jax.Array, features: int) -> jax.Array:
    """Sinusoidal vectors [..., D]: sin and cos of position / 10000^(2i/D) (1706.03762), D even."""
    half = features // 2
    angles = positions[..., None] * 10000.0 ** (-np.arange(half, dtype=np.float32) / half)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
