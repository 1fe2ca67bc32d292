"""Quantizes an array to small integers and their scales, and back."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@flax.struct.dataclass
class Quantized:
    """An array w in small integers: w = q s, with a scale s for each group of `group` numbers.

    Attributes:
      values: int8 [..., G, g], the numbers q of G groups along `axis`, which is the last here; of 4
        bits two in a byte, uint8 [..., G, g / 2], the first in the low half.
      scales: float32 [..., G].
      axis: of w, along which its numbers share scales; counted from the end, below 0.
      bits: 8 or 4.
    """

    values: ArrayLike
    scales: ArrayLike
    axis: int = flax.struct.field(pytree_node=False)
    bits: int = flax.struct.field(pytree_node=False)


def quantize(w: np.ndarray, bits: int, axis: int, group: int | None = None) -> Quantized:
    """The nearest integers, from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, to w / s.

    s is the largest absolute value of a group over the largest integer, so that 0 stays 0, and w
    that was quantized before stays as it is.

    Args:
      w: float, of any shape.
      bits: 8, or 4 where groups have an even number of elements.
      axis: below 0.
      group: elements that share a scale; None, or where it does not divide the axis: all of it.
    """
    moved = np.moveaxis(np.asarray(w, np.float32), axis, -1)
    size = moved.shape[-1]
    together = size if group is None or size % group else group
    parts = moved.reshape(*moved.shape[:-1], size // together, together)
    most = 2 ** (bits - 1) - 1
    scales = np.abs(parts).max(axis=-1) / np.float32(most)
    divisor = np.where(scales > 0, scales, 1)[..., None]
    values = np.clip(np.rint(parts / divisor), -most, most).astype(np.int8)
    if bits == 4:
        half = (values & 15).astype(np.uint8)
        values = half[..., ::2] | (half[..., 1::2] << 4)
    return Quantized(values, scales, axis, bits)


def dequantize(quantized: Quantized) -> jax.Array:
    """The array in float32."""
    values = jnp.asarray(quantized.values)
    if quantized.bits == 4:
        halves = jnp.stack([values & 15, values >> 4], axis=-1).astype(jnp.int8)
        signed = jnp.where(halves > 7, halves - 16, halves)
        values = signed.reshape(*values.shape[:-1], -1)
    w = values.astype(jnp.float32) * jnp.asarray(quantized.scales)[..., None]
    return jnp.moveaxis(w.reshape(*w.shape[:-2], -1), -1, quantized.axis)


def dequantized_params(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters with arrays in the place of quantized ones."""
    return jax.tree.map(
        lambda x: dequantize(x) if isinstance(x, Quantized) else x,
        params,
        is_leaf=lambda x: isinstance(x, Quantized),
    )
