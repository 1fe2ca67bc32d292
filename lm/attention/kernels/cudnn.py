"""Attention by a vendor's kernel: on NVIDIA GPUs, for half-precision softmax and simple masks,
cuDNN's flash attention, which never stores a score.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from lm.attention.mask import Mask
from lm.devices.sharding import split_heads

Shaped = jax.Array | jax.ShapeDtypeStruct

# Above this many places, the boolean mask that documents need would cost more than it saves; and
# the kernel's backward pass takes it only for an even length.
_MASK_LIMIT = 1024 * 1024


def cudnn_refuses(query: Shaped, key: Shaped, value: Shaped, mask: Mask) -> str:
    """Why `cudnn_attention` does not take arrays of these shapes and types; empty where it does.

    Args:
      query: [B, Q, H, K].
      key, value: [B, S, G, K].
      mask: of them.
    """
    if query.dtype not in (jnp.bfloat16, jnp.float16) or not (
        query.dtype == key.dtype == value.dtype
    ):
        return f"{query.dtype} is not half precision"
    size = query.shape[3]
    if size != value.shape[3] or size % 8 or size > 128:
        return f"heads of {size} features are none of 8, 16, ... 128"
    return "" if supports_mask(query, mask) else "it cannot express the mask"


def supports_mask(query: Shaped, mask: Mask) -> bool:
    """Whether the kernel's arguments can express the mask."""
    square = mask.offset is None and mask.padding is None and mask.key_segments is None
    square = square and mask.prefix is None
    windowed = mask.window is not None and not mask.causal
    length = query.shape[1]
    stored = mask.segments is None or (length**2 <= _MASK_LIMIT and length % 2 == 0)
    return square and not windowed and stored


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """softmax(q.k / sqrt(K)) v by one kernel, forward and backward.

    Args:
      query: [B, Q, H, K].
      key, value: [B, S, G, K], S = Q; G divides H.
      mask: causal, a causal window, or documents that fit a stored mask; see `supports_mask`.
      implementation: "cudnn", or "xla" for the same arguments without a kernel.
    """
    query, key, value = map(split_heads, (query, key, value))  # cuDNN wants them split alike
    dense = None
    if mask.segments is not None:
        dense = mask.segments[:, None, :, None] == mask.segments[:, None, None, :]
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=dense,
        is_causal=mask.causal,
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        implementation=implementation,
    )
