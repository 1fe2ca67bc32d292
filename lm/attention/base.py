"""The contract of attention mechanisms: what every module of `ATTENTIONS` takes, and the facts that
it states about itself, by which a config is validated.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax

from lm.attention.positions import PositionBias


@dataclasses.dataclass(frozen=True)
class LayerContext:
    """What a mechanism is told of the layer that it belongs to.

    Attributes:
      inputs: [B, Q, D], from which the layer projects its queries.
      position_bias: what distances add to the scores; None: nothing.
      cache_length: S when decoding with a cache. Keys and values then come whole; what else a
        mechanism needs of earlier positions it caches itself (`update_cache`).
    """

    inputs: jax.Array
    position_bias: PositionBias | None = None
    cache_length: int | None = None


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
      owns_weights: it computes weights of its own, not by `weighting` from scores.
      causal_only: defined only where a query sees no later key: not in encoders, nor for
        cross-attention.
      self_only: defined only where queries and keys are of the same positions: not for
        cross-attention, nor beside keys that are not of a position.
      mixes_heads: a head's context is of other heads' weights too.
      scores_alone: its weights are the weighting's of q.k and nothing else, as kernels have them.
      position_embeddings: the position embeddings within attention that it supports.
    """

    weighting: str = "softmax"
    options: Mapping[str, Any] = nn.FrozenDict()
    learn: Sequence[str] = ()
    anneal: Sequence[Any] = ()
    query_chunk_size: int | None = None

    owns_weights: ClassVar[bool] = False
    causal_only: ClassVar[bool] = False
    self_only: ClassVar[bool] = False
    mixes_heads: ClassVar[bool] = False
    scores_alone: ClassVar[bool] = False
    position_embeddings: ClassVar[tuple[str, ...]] = ("rotary", "alibi", "relative")

    @classmethod
    def own_options(cls) -> set[str]:
        """Names of the attributes that this mechanism has and others lack."""
        return set(cls.__dataclass_fields__) - set(Mechanism.__dataclass_fields__)


def random_key(mechanism: Mechanism) -> jax.Array | None:
    """A key from the rng collection "softmax", which training gives; None in evaluation."""
    return mechanism.make_rng("softmax") if mechanism.has_rng("softmax") else None
