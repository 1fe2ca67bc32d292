"""Chooses how a device computes the loss of its tokens: with all their logits, in chunks of tokens,
or by kernels, by the least time that its peak rates allow.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.devices.accelerators import Accelerator, accelerator_of
from lm.devices.platform import platform, target_device
from lm.output.kernels.tiles import make_tiles

# Of fewer, kernels would not split the vocabulary into two blocks for each core; logits are few.
_LEAST_VOCAB = 4096
# Cycles of the kernels' schedules over those of their products alone; 1.0 where none is listed.
# Matrix units of 256 x 256 leave less time for the vector units, whose work is the same. The figure
# is a v6e's (experiments/tpu_head_kernels.py), and is taken for a TPU7x, which has such units too.
_OVER_PRODUCTS = {"TPU v6 lite": 1.5, "TPU7x": 1.5}


class Choice(NamedTuple):
    """Whether kernels compute the loss; on a TPU, why not."""

    fused: bool
    reason: str = ""


class Seconds(NamedTuple):
    """The least seconds of a loss and its gradients on one device.

    Attributes:
      unfused: with the logits of a chunk of tokens in memory.
      fused: by kernels.
    """

    unfused: float
    fused: float


def choose(
    tokens: int, vocab: int, features: int, dtype: DTypeLike, chunks: int, refused: str
) -> Choice:
    """Whether kernels compute the loss of N tokens on the devices in use.

    Args:
      tokens, vocab, features: N, V and D of one device.
      dtype: of the products' operands.
      chunks: in which tokens are computed otherwise; 1: all at once.
      refused: why the head has no kernel; empty where it has one.
    """
    if platform() != "tpu":
        return Choice(False)
    kind, dtype = target_device().device_kind, jnp.dtype(dtype)
    device = accelerator_of(kind)
    if device is None:
        refused = refused or f"the peak rates of {kind} are not known"
    if dtype not in (jnp.bfloat16, jnp.float32):
        refused = refused or f"{dtype} is neither bfloat16 nor float32"
    if vocab < _LEAST_VOCAB:
        refused = refused or f"a vocabulary of {vocab:,} on a device is below {_LEAST_VOCAB:,}"
    if refused or device is None:
        return Choice(False, refused)
    unfused, fused = roofline(device, tokens, vocab, features, dtype.itemsize, chunks)
    if fused < unfused:
        return Choice(True)
    return Choice(False, f"it takes at least {fused * 1e3:.3g} ms, without {unfused * 1e3:.3g} ms")


def roofline(
    device: Accelerator, tokens: int, vocab: int, features: int, itemsize: int, chunks: int
) -> Seconds:
    """The least time with and without kernels, forward and backward.

    Without: three products of 2 N D V FLOPs each, of hidden states and table, and of the logits'
    gradients and either of these. Each moves the N V logits once, in float32, while it computes,
    and reads the table, or adds to its gradient, once for every chunk of tokens. Sums and gradients
    of logits move about 6 N V bytes more, 18 N V in all, while nothing is multiplied:

        2 max(2NDV/F, (4NV + sCVD)/B) + max(2NDV/F, (4NV + 8CVD)/B) + 6NV/B

    With F the peak of FLOP/s, B the bandwidth, s the bytes of an operand's number and C chunks.
    With kernels: four products, as logits are computed twice, and no logit is moved. The table is
    read twice, and the sum of its gradient read and written once, for every block of n tokens:

        max(c 8NDV/F, (2s + 8) (N/n) VD/B)

    With c what the schedules of the kernels take over their products: 1.0, on a v6e 1.5. For few
    chunks and large N the kernels are faster below D = 3 F/B (721 on a v5e, 498 on a v5p), on a v6e
    below 1.5 F/B, 840.

    Args:
      device: with F and B.
      tokens, vocab, features, itemsize, chunks: N, V, D, s and C.
    """
    rate, bandwidth = device.peak_flops, device.bandwidth
    logits, table = tokens * vocab, vocab * features
    product = 2.0 * logits * features / rate
    reading, adding = (
        max(product, (4.0 * logits + size * chunks * table) / bandwidth) for size in (itemsize, 8)
    )
    tiles = make_tiles(tokens, vocab, features, itemsize)
    computed = tiles.token_blocks * tiles.token_tile * table
    moved = (2 * itemsize + 8) * tiles.token_blocks * table
    over = _OVER_PRODUCTS.get(device.kind, 1.0)
    return Seconds(
        unfused=2.0 * reading + adding + 6.0 * logits / bandwidth,
        fused=max(over * 8.0 * computed / rate, moved / bandwidth),
    )
