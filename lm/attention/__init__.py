"""Attention: queries, keys and values to contexts. `attend` computes it from scores, for any
weighting; `ATTENTIONS` maps every mechanism's name to its module.

Adding a mechanism is one module in this package, one entry in the table below, and one line in a
config's `sweep()`; the laws in `tests/` then hold it to its declared facts.
"""

from lm.attention.attend import attend
from lm.attention.base import Mechanism
from lm.attention.differential import DifferentialAttention
from lm.attention.exclusive import ExclusiveAttention
from lm.attention.forgetting import ForgettingAttention
from lm.attention.gated import GatedAttention
from lm.attention.laser import LaserAttention
from lm.attention.linear import CosformerAttention, FavorAttention, LinearAttention
from lm.attention.mask import Mask
from lm.attention.scores import ScoreAttention
from lm.attention.stick_breaking import StickBreakingAttention
from lm.attention.talking_heads import TalkingHeadsAttention

ATTENTIONS: dict[str, type[Mechanism]] = {
    "scores": ScoreAttention,
    "differential": DifferentialAttention,
    "gated": GatedAttention,
    "forgetting": ForgettingAttention,
    "exclusive": ExclusiveAttention,
    "laser": LaserAttention,
    "talking_heads": TalkingHeadsAttention,
    "stick_breaking": StickBreakingAttention,
    "linear": LinearAttention,
    "favor": FavorAttention,
    "cosformer": CosformerAttention,
}

__all__ = ["ATTENTIONS", "Mask", "Mechanism", "ScoreAttention", "attend"]
