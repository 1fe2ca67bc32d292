"""Orders the vocabulary by the training text's counts, for heads that need an order."""

from collections.abc import Sequence

import numpy as np


def by_frequency(
    counts: Sequence[int] | np.ndarray | None, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens from the most to the least frequent, and the rank of each token, int32 [V] each.

    Args:
      counts: [V], or None where tokens are in this order already. Equal counts keep their order.
      vocab_size: V.
    """
    frequency = np.zeros(vocab_size) if counts is None else np.asarray(counts, np.int64)
    order = np.argsort(-frequency, kind="stable")
    return order.astype(np.int32), np.argsort(order).astype(np.int32)
