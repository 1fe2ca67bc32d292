"""Cuts the logits of N tokens over a vocabulary of V into tiles, [vocabulary, tokens], of which a
core of a TPU holds one at a time.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.devices.platform import core_memory, target_device
from lm.output.logit_transform import LogitTransform

# The most tokens and words of a tile. The table is read, and the sum of its gradient moved, once
# for each block of tokens: so many of them hide that behind the products.
_TOKENS, _WORDS = 1024, 512
_LANES = 128
# Multiplications of a tile's product: the compiler unrolls them.
_UNROLLED = 1024 * 256 * 2304
# Two TensorCores of a chip are one device, whose kernels split a parallel axis of their grid.
_TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles [word_size, token_size] of logits.

    Attributes:
      tokens, words: N and V, before they are padded to whole tiles.
      token_size, word_size: of a tile.
      cores: over which the backward pass splits the vocabulary.
    """

    tokens: int
    words: int
    token_size: int
    word_size: int
    cores: int = 1

    @property
    def token_blocks(self) -> int:
        """How many tiles the tokens fill."""
        return -(-self.tokens // self.token_size)

    @property
    def word_blocks(self) -> int:
        """How many tiles the vocabulary fills, as many on each core."""
        return -(-self.words // (self.word_size * self.cores)) * self.cores

    def is_padding(self, word_block: jax.Array, tokens: int) -> jax.Array | None:
        """Boolean [word_size, tokens], which words of a tile are none; None: all are words."""
        if self.words == self.word_blocks * self.word_size:
            return None
        row = jax.lax.broadcasted_iota(jnp.int32, (self.word_size, tokens), 0)
        return row >= self.words - word_block * self.word_size

    def is_target(self, word_block: jax.Array, targets: jax.Array) -> jax.Array:
        """Boolean [word_size, tokens], of targets [1, tokens]."""
        row = jax.lax.broadcasted_iota(jnp.int32, (self.word_size, targets.shape[1]), 0)
        return row == targets - word_block * self.word_size


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


def make_tiles(tokens: int, words: int, features: int, itemsize: int) -> Tiles:
    """The largest tiles that fit in the memory of a core and do not take long to compile.

    Args:
      tokens, words, features: N, V and D.
      itemsize: bytes of an operand's number.
    """
    n, v = max(
        (n, v)
        for n in (_TOKENS, 512, 256, _LANES)
        for v in (_WORDS, 256, _LANES)
        if backward_memory(n, v, features, itemsize) <= core_memory()
        and n * v * features <= _UNROLLED
    )
    cores = 2 if target_device().device_kind in _TWO_CORES else 1
    word_size = _dividing(min(v, _whole(words)), words // cores)
    return Tiles(tokens, words, min(n, _whole(tokens)), word_size, cores)


def backward_memory(token_size: int, word_size: int, features: int, itemsize: int) -> int:
    """Bytes that the backward pass takes of a core's memory: hidden states, rows of the table, and
    the sums of the gradients of both, each twice, and once what is added to these; and four tiles.
    """
    each = 2 * itemsize + 3 * 4
    return (token_size + word_size) * features * each + 16 * token_size * word_size


def _dividing(largest: int, words: int) -> int:
    """A multiple of 128 that divides `words`, if one is at least half of the largest, else that."""
    fitting = range(largest, largest // 2 - 1, -_LANES)
    return next((size for size in fitting if words % size == 0), largest)


def _whole(length: int) -> int:
    return -(-length // _LANES) * _LANES
