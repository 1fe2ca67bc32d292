"""A document and its scored tokens, padded to powers of two, so that few shapes are compiled."""

from typing import Any, NamedTuple

import numpy as np

MIN_LENGTH, _MIN_TARGETS = 16, 8  # of the smallest arrays


class ScoredRow(NamedTuple):
    """A document and the targets whose log-likelihood is computed.

    Attributes:
      inputs: [L], token ids of the decoder or encoder; of an encoder-decoder, of its decoder.
      target_positions: [T], the positions at which the targets are predicted.
      targets: [T].
      prefix: how many of the first positions attend to each other, in a prefix language model.
      encoder_inputs: [S], token ids of the encoder of an encoder-decoder.
    """

    inputs: np.ndarray
    target_positions: np.ndarray
    targets: np.ndarray
    prefix: int = 0
    encoder_inputs: np.ndarray | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal rows."""
        return tuple(x.tobytes() if isinstance(x, np.ndarray) else x for x in self)

    def sizes(self, limit: int) -> tuple[int, int, int]:
        """L, T and S (0: no encoder), each rounded up to a power of two, at most `limit`."""
        length = round_up(len(self.inputs), MIN_LENGTH, limit)
        targets = round_up(len(self.targets), _MIN_TARGETS, length)
        if self.encoder_inputs is None:
            return length, targets, 0
        return length, targets, round_up(len(self.encoder_inputs), MIN_LENGTH, limit)

    def padded(self, sizes: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """Its arrays, padded with zeros to these sizes."""
        length, targets, encoder_length = sizes
        row = {
            "inputs": _pad(self.inputs, length),
            "segments": _pad(np.ones(len(self.inputs)), length),
            "target_positions": _pad(self.target_positions, targets),
            "targets": _pad(self.targets, targets),
            "target_mask": _pad(np.ones(len(self.targets)), targets),
        }
        if self.prefix:
            row["prefix"] = _pad(np.ones(self.prefix), length)
        if self.encoder_inputs is not None:
            row["encoder_inputs"] = _pad(self.encoder_inputs, encoder_length)
            row["encoder_segments"] = _pad(np.ones(len(self.encoder_inputs)), encoder_length)
        return row


def _pad(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values.astype(np.int32), (0, size - len(values)))


def round_up(size: int, smallest: int, limit: int) -> int:
    """The power of two, from `smallest`, that holds `size`; at most `limit`."""
    return min(max(smallest, 1 << (size - 1).bit_length()), limit)
