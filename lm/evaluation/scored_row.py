"""What is asked of a model at once? Some tokens of one document, each at a place where it would be
predicted; in arrays whose sizes are powers of two, so that few shapes are compiled.
"""

from typing import Any, NamedTuple

import numpy as np

_LEAST, _LEAST_ASKED = 16, 8  # of the smallest arrays


class Row(NamedTuple):
    """One document, and what is asked of it.

    Attributes:
      inputs: [L], what the model reads; of an encoder-decoder, its decoder.
      target_positions: [T], the positions at which the targets are predicted.
      targets: [T].
      prefix: how many of the first positions see each other, in a prefix language model.
      memory: [S], what the encoder of an encoder-decoder reads.
    """

    inputs: np.ndarray
    target_positions: np.ndarray
    targets: np.ndarray
    prefix: int = 0
    memory: np.ndarray | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for rows that are alike."""
        return tuple(x.tobytes() if isinstance(x, np.ndarray) else x for x in self)

    def sizes(self, most: int) -> tuple[int, int, int]:
        """L, T and S (0: no memory), each raised to a power of two, or to `most` below it."""
        memory = 0 if self.memory is None else _raised(len(self.memory), _LEAST, most)
        length = _raised(len(self.inputs), _LEAST, most)
        return length, _raised(len(self.targets), _LEAST_ASKED, length), memory

    def padded(self, sizes: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """Its arrays as a batch of these sizes has them, with zeros behind what is there."""
        length, asked, memory = sizes
        row = {
            "inputs": _filled(self.inputs, length),
            "segments": _filled(np.ones(len(self.inputs)), length),
            "target_positions": _filled(self.target_positions, asked),
            "targets": _filled(self.targets, asked),
            "asked": _filled(np.ones(len(self.targets)), asked),
        }
        if self.prefix:
            row["prefix"] = _filled(np.ones(self.prefix), length)
        if self.memory is not None:
            row["memory"] = _filled(self.memory, memory)
            row["encoder_segments"] = _filled(np.ones(len(self.memory)), memory)
        return row


def _filled(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values.astype(np.int32), (0, size - len(values)))


def _raised(size: int, least: int, most: int) -> int:
    return min(max(least, 1 << (size - 1).bit_length()), most)
