"""How do queries, keys and values become contexts? `attend` is the score-based way, for any
weighting; `ATTENTIONS` maps every mechanism's name to its module.
"""

from lm.attention.attend import attend
from lm.attention.mask import Mask
from lm.attention.multihead import MultiHeadAttention, ScoreAttention

ATTENTIONS = {"scores": ScoreAttention}

__all__ = ["ATTENTIONS", "Mask", "MultiHeadAttention", "attend"]
