"""The few lengths to which texts are padded, so that few programs are compiled: powers of two, and
the longest text.
"""

from lm.evaluation.scored_row import MIN_LENGTH, round_up


def bucket(size: int, length: int) -> int:
    """The length to which a text of `size` tokens, at most `length`, is padded."""
    return round_up(size, min(MIN_LENGTH, length), length)


def buckets(length: int) -> list[int]:
    """All lengths to which texts of at most `length` tokens are padded."""
    found = [bucket(1, length)]
    while found[-1] < length:
        found.append(bucket(found[-1] + 1, length))
    return found
