"""Which examples are shown with their answers? A draw that depends on nothing but the seed and the
question's number: every question has its own (as in Brown et al. 2020, 2005.14165).
"""

import collections
from collections.abc import Sequence

import numpy as np


def draw(
    labels: Sequence[int], count: int, seed: int, question: int, balanced: bool, barred: set[int]
) -> list[int]:
    """Numbers of examples, in the order in which they are shown.

    Args:
      labels: of the examples to draw from.
      count: how many to draw, without replacement.
      seed, question: what the draw is a pure function of.
      balanced: labels come equally often, but for a remainder; which has more is random.
      barred: numbers of examples that are the question itself.

    Returns:
      `count` numbers, fewer where there are not as many.
    """
    if not count:
        return []
    random = np.random.default_rng([seed, question])
    order = [int(i) for i in random.permutation(len(labels)) if int(i) not in barred]
    if not balanced:
        return order[:count]
    seen: collections.Counter[int] = collections.Counter()
    turn = {}
    for number in order:
        turn[number] = seen[labels[number]]
        seen[labels[number]] += 1
    chosen = sorted(order, key=turn.__getitem__)[:count]
    return [chosen[i] for i in random.permutation(len(chosen))]
