"""How much is to be regularised? More while training rows are fitted better than held-out ones, and
less while they are not.
"""

import math

LIMIT = 100.0


def adapted(strength: float, gap: float, rate: float, target: float) -> float:
    """The factor c exp(r (gap - g)), from 1/100 to 100, of the penalties from here on.

    The coefficient rests where the gap is the target's, and moves by the same factor for the same
    difference, up or down.

    Args:
      strength: c; 1 at first.
      gap: held-out loss minus training loss, in nats per token or label.
      rate: r, at least 0.
      target: g, the gap that is allowed.
    """
    moved = math.log(strength) + rate * (gap - target)
    return math.exp(min(max(moved, -math.log(LIMIT)), math.log(LIMIT)))
