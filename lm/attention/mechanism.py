"""What is a mechanism? What every row of `ATTENTIONS` takes, and the facts that it states about
itself, by which `lm.check` refuses what it cannot do.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn


class Mechanism(nn.Module):
    """Queries, keys and values to contexts.

    A subclass has `__call__(query, key, value, mask, slopes, inputs, cache_length)`: [B, Q, H, K],
    [B, S, G, K] and [B, S, G, K] to [B, Q, H, K]; `slopes` [H] are ALiBi's or None, `inputs`
    [B, Q, D] what the layer attends from, `cache_length` S where it decodes with a cache and None
    elsewhere. With a cache, keys and values come whole, and what else a mechanism needs of the past
    it keeps itself (`remember`). Its own options are further attributes.

    Attributes:
      weighting: a name of `WEIGHTINGS`.
      options: that weighting's options, or where those to learn start.
      learn: options that are parameters, one per head.
      block: positions computed at a time; None: by size; 0: all at once, the plain path.

    Facts:
      weighs: it has no scores for `weighting` to weigh, but weights of its own.
      causal: defined only where a query sees no later key, so not in encoders or on memories.
      positions: the position schemes within attention that mean something to it.
    """

    weighting: str = "softmax"
    options: Mapping[str, Any] = nn.FrozenDict()
    learn: Sequence[str] = ()
    block: int | None = None

    weighs: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    positions: ClassVar[tuple[str, ...]] = ("rotary", "alibi")

    @classmethod
    def own_options(cls) -> set[str]:
        """Names of the attributes that this mechanism has and others lack."""
        return set(cls.__dataclass_fields__) - set(Mechanism.__dataclass_fields__)
