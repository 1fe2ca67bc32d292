"""What is a mechanism? What every row of `ATTENTIONS` takes, and the facts that it states about
itself, by which `lm.training.validate` refuses what it cannot do.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a mechanism may know of the layer that it attends for.

    Attributes:
      position_bias: what distances add to scores, `Slopes` or `Buckets`; None: nothing.
      inputs: [B, Q, D], what the layer attends from.
      cache_length: S where it decodes with a cache. Keys and values then come whole; what else a
        mechanism needs of the past it keeps itself (`update_cache`).
    """

    position_bias: Any = None
    inputs: Any = None
    cache_length: int | None = None


ALONE = Layer()


class Mechanism(nn.Module):
    """Queries, keys and values to contexts.

    A subclass has `__call__(query, key, value, mask, layer)`: [B, Q, H, K], [B, S, G, K] and
    [B, S, G, K] to [B, Q, H, K]. Its own options are further attributes.

    Attributes:
      weighting: a name of `WEIGHTINGS`.
      options: that weighting's options, or where those to learn start.
      learn: options that are parameters, one per head.
      anneal: an option that a schedule moves (`lm.training.annealing`), its first and last value,
        and steps.
      query_chunk_size: positions computed at a time; None: by size; 0: all at once, the plain path.

    Facts:
      weighs: it has no scores for `weighting` to weigh, but weights of its own.
      causal: defined only where a query sees no later key, so not in encoders or on memories.
      positions: the position schemes within attention that mean something to it.
    """

    weighting: str = "softmax"
    options: Mapping[str, Any] = nn.FrozenDict()
    learn: Sequence[str] = ()
    anneal: Sequence[Any] = ()
    query_chunk_size: int | None = None

    weighs: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    positions: ClassVar[tuple[str, ...]] = ("rotary", "alibi", "relative")

    @classmethod
    def own_options(cls) -> set[str]:
        """Names of the attributes that this mechanism has and others lack."""
        return set(cls.__dataclass_fields__) - set(Mechanism.__dataclass_fields__)


def random_key(mechanism: Mechanism) -> jax.Array | None:
    """A key from the rng collection "softmax", which training gives; None in evaluation."""
    return mechanism.make_rng("softmax") if mechanism.has_rng("softmax") else None
