"""Chooses how much of a head's work is done at once, by shape and device."""

import math

from lm.devices.platform import platform


def max_logits() -> int:
    """Logits held at once by one device: 64 MB of them on a CPU, 1 GB elsewhere."""
    return (16 if platform() == "cpu" else 256) * 1024 * 1024


def chunk_count(tokens: int, per_token: int, token_chunk_size: int | None, devices: int = 1) -> int:
    """In how many equal chunks a head computes its logits.

    Args:
      tokens: N.
      per_token: logits that a token needs at once.
      token_chunk_size: tokens at a time; 0: all. None: the fewest chunks that keep within the
        limit.
      devices: that hold the logits of one chunk together.
    """
    if token_chunk_size == 0:
        return 1
    if token_chunk_size is not None:
        return -(-tokens // token_chunk_size)
    wanted = max(1, min(tokens, -(-tokens * per_token // (max_logits() * devices))))
    # A number that divides the tokens spares padding, if there is one near.
    return next((n for n in range(wanted, 2 * wanted) if tokens % n == 0), wanted)


def gather_size(
    tokens: int, target_fraction: float, per_token: int, token_chunk_size: int | None
) -> int:
    """How many of N tokens, of which a fraction counts, are gathered at once.

    All that count, with four standard deviations to spare, unless they pass the limit.
    """
    spread = 4.0 * math.sqrt(tokens * target_fraction * (1.0 - target_fraction))
    likely = min(tokens, math.ceil(tokens * target_fraction + spread))
    return max(1, min(likely, token_chunk_size or max_logits() // per_token))
