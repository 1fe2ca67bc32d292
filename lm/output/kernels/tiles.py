"""Cuts the logits of N tokens over a vocabulary of V into tiles, [vocabulary, tokens], of which a
core of a TPU holds one at a time.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.devices.platform import target_device
from lm.devices.tpu_core import LANES, core_memory
from lm.output.logit_transform import LogitTransform

# Sides of the largest tile. The table is read, and the sum of its gradient moved, once for each
# block of tokens: so many of them hide that behind the products.
_TOKENS, _VOCAB = 1024, 512
# Multiplications of a tile's product: the compiler unrolls them.
_UNROLLED = 1024 * 256 * 2304
# Two TensorCores of a chip are one device, whose kernels split a parallel axis of their grid.
_TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles [vocab_tile, token_tile] of logits.

    Attributes:
      tokens, vocab: N and V, before they are padded to whole tiles.
      token_tile, vocab_tile: of a tile.
      cores: over which the backward pass splits the vocabulary.
    """

    tokens: int
    vocab: int
    token_tile: int
    vocab_tile: int
    cores: int = 1

    @property
    def token_blocks(self) -> int:
        """How many tiles the tokens fill."""
        return -(-self.tokens // self.token_tile)

    @property
    def vocab_blocks(self) -> int:
        """How many tiles the vocabulary fills, as many on each core."""
        return -(-self.vocab // (self.vocab_tile * self.cores)) * self.cores

    def is_padding(self, vocab_block: jax.Array, tokens: int) -> jax.Array | None:
        """Boolean [vocab_tile, tokens], what of a tile is behind the vocabulary; None: nothing."""
        if self.vocab == self.vocab_blocks * self.vocab_tile:
            return None
        row = jax.lax.broadcasted_iota(jnp.int32, (self.vocab_tile, tokens), 0)
        return row >= self.vocab - vocab_block * self.vocab_tile

    def is_target(self, vocab_block: jax.Array, targets: jax.Array) -> jax.Array:
        """Boolean [vocab_tile, tokens], of targets [1, tokens]."""
        row = jax.lax.broadcasted_iota(jnp.int32, (self.vocab_tile, targets.shape[1]), 0)
        return row == targets - vocab_block * self.vocab_tile


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the kernels are made of.

    Attributes:
      tiles: how logits are cut.
      transform: of every logit.
      mean: whether the mean of the logits is asked for.
      entropy: whether the entropy is.
      interpret: on any device, slowly.
    """

    tiles: Tiles
    transform: LogitTransform
    mean: bool
    entropy: bool
    interpret: bool


def make_tiles(tokens: int, vocab: int, features: int, itemsize: int) -> Tiles:
    """The largest tiles that fit in the memory of a core and do not take long to compile.

    Args:
      tokens, vocab, features: N, V and D.
      itemsize: bytes of an operand's number.
    """
    n, v = max(
        (n, v)
        for n in (_TOKENS, 512, 256, LANES)
        for v in (_VOCAB, 256, LANES)
        if backward_memory(n, v, features, itemsize) <= core_memory()
        and n * v * features <= _UNROLLED
    )
    cores = 2 if target_device().device_kind in _TWO_CORES else 1
    vocab_tile = _dividing(min(v, _whole(vocab)), vocab // cores)
    return Tiles(tokens, vocab, min(n, _whole(tokens)), vocab_tile, cores)


def backward_memory(token_tile: int, vocab_tile: int, features: int, itemsize: int) -> int:
    """Bytes that the backward pass takes of a core's memory: hidden states, rows of the table, and
    the sums of the gradients of both, each twice, and once what is added to these; and four tiles.
    """
    each = 2 * itemsize + 3 * 4
    return (token_tile + vocab_tile) * features * each + 16 * token_tile * vocab_tile


def _dividing(largest: int, vocab: int) -> int:
    """A multiple of 128 that divides `vocab`, if one is at least half of the largest, else that."""
    fitting = range(largest, largest // 2 - 1, -LANES)
    return next((size for size in fitting if vocab % size == 0), largest)


def _whole(length: int) -> int:
    return -(-length // LANES) * LANES
