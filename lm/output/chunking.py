"""How much of a head's work is done at once? By shape and device."""

import math

from lm.devices.platform import platform


def limit() -> int:
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
    wanted = max(1, min(tokens, -(-tokens * per_token // (limit() * devices))))
    # A number that divides the tokens spares padding, if there is one near.
    return next((n for n in range(wanted, 2 * wanted) if tokens % n == 0), wanted)


def block_size(tokens: int, share: float, per_token: int, token_chunk_size: int | None) -> int:
    """How many of N tokens, a share of which counts, are gathered at once.

    All that count, with four standard deviations to spare, unless they pass the limit.
    """
    spread = 4.0 * math.sqrt(tokens * share * (1.0 - share))
    likely = min(tokens, math.ceil(tokens * share + spread))
    return max(1, min(likely, token_chunk_size or limit() // per_token))
