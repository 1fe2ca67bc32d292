"""Chooses the kernel that computes an attention, by device, weighting and mask."""

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.attention.kernels.attention import find_family, kernel_attention
from lm.attention.kernels.cudnn import cudnn_attention, cudnn_refuses
from lm.attention.kernels.whole_rows import WholeRows, most_keys
from lm.attention.mask import Mask
from lm.devices.platform import platform, target_device
from lm.devices.sharding import divides, over_rows_and_heads
from lm.softmax import WEIGHTINGS

Shaped = jax.Array | jax.ShapeDtypeStruct

# Shorter rows are computed at once: their scores are few.
_SHORTEST = 512


class Kernel(enum.Enum):
    """A kernel, and how a run's log calls it."""

    CUDNN = "cuDNN's kernel"
    TPU = "one TPU kernel"


class Choice(NamedTuple):
    """A kernel, or None and why."""

    kernel: Kernel | None
    reason: str = ""


def choose(
    query: Shaped,
    key: Shaped,
    value: Shaped,
    mask: Mask,
    weighting: str,
    scores_alone: bool,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Choice:
    """The kernel for arrays of these shapes and types on the devices in use.

    Args:
      query: [B, Q, H, K].
      key, value: [B, S, G, K] and [B, S, G, K'].
      mask: of them.
      weighting: a name of `WEIGHTINGS`.
      scores_alone: nothing is added to scores, and no head's are mixed with another's.
      options: the weighting's fixed ones.
    """
    if platform() == "tpu":
        reason = _tpu_refuses(query, key, value, mask, weighting, options)
        kernel = Kernel.TPU
    elif platform() == "gpu" and "nvidia" in target_device().device_kind.lower():
        reason = "" if weighting == "softmax" else f"{weighting} has none on a GPU"
        reason = reason or cudnn_refuses(query, key, value, mask)
        kernel = Kernel.CUDNN
    else:
        return Choice(None)
    if not scores_alone:
        reason = "something is added to the scores"
    return Choice(None, reason) if reason else Choice(kernel)


def _tpu_refuses(
    query: Shaped,
    key: Shaped,
    value: Shaped,
    mask: Mask,
    weighting: str,
    options: Mapping[str, Any],
) -> str:
    """Why the TPU's kernel does not take them; empty where it does."""
    family = find_family(WEIGHTINGS[weighting])
    if family is None:
        return f"{weighting} has none on a TPU"
    alpha_of = WEIGHTINGS[weighting].entmax_alpha
    if alpha_of is not None and not 1.0 <= alpha_of(**options) <= 2.0:
        return f"{weighting} has none at an alpha outside 1 to 2"
    if issubclass(family, WholeRows) and key.shape[1] > most_keys():
        return f"{weighting} has none for rows of more than {most_keys():,} keys"
    if min(query.shape[1], key.shape[1]) < _SHORTEST:
        return f"rows are shorter than {_SHORTEST}"
    if mask.offset is not None or mask.prefix is not None:
        return "the mask has an offset or a prefix"
    if not query.dtype == key.dtype == value.dtype or query.dtype not in (
        jnp.bfloat16,
        jnp.float32,
    ):
        return f"{query.dtype} is neither bfloat16 nor float32"
    if not divides(query.shape[0], key.shape[2]):
        return "rows or heads do not divide over the mesh"
    return ""


def attend_by(
    kernel: Kernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    weighting: str,
    options: Mapping[str, Any],
    learned: Mapping[str, jax.Array],
) -> jax.Array:
    """What `attend` gives, [B, Q, H, K'], by a kernel that `choose` found."""
    if kernel is Kernel.CUDNN:
        return cudnn_attention(query, key, value, mask)

    def on_one(query, key, value, mask, learned):
        record = WEIGHTINGS[weighting]
        return kernel_attention(query, key, value, mask, record, options, learned)

    return over_rows_and_heads(on_one, (query, key, value), mask, dict(learned))
