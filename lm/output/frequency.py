"""Which words are frequent? Ranks from the training text's counts, for heads that need an order."""

from typing import Any

import numpy as np


def by_frequency(counts: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Words from the most to the least frequent, and the rank of each word, int32 [V] each.

    Args:
      counts: [V], or None where words are in this order already. Equal counts keep their order.
      vocab_size: V.
    """
    if counts is None:
        order = np.arange(vocab_size)
    else:
        order = np.argsort(-np.asarray(counts, np.int64), kind="stable")
    ranks = np.empty(vocab_size, np.int32)
    ranks[order] = np.arange(vocab_size)
    return order.astype(np.int32), ranks
