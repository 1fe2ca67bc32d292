"""Objectives turn rows of tokens and a random key into inputs, targets and weights. `OBJECTIVES`
maps every objective's name to its class.

Adding an objective is one module in this package and one entry in the table below.
"""

from typing import Any

from lm.config import Config, chosen_options
from lm.data.objectives.base import Objective
from lm.data.objectives.causal import Causal, causal, positions_within
from lm.data.objectives.masked import Masked
from lm.data.objectives.prefix import Prefix
from lm.data.objectives.seq2seq import Seq2seq
from lm.data.objectives.span import Span
from lm.data.tokenizer import Tokenizer

OBJECTIVES: dict[str, type[Objective]] = {
    "causal": Causal,
    "masked": Masked,
    "span": Span,
    "prefix": Prefix,
    "seq2seq": Seq2seq,
}


def build_objective(config: Config, tokenizer: Tokenizer) -> Objective:
    """The objective that a config names, for rows of this tokenizer.

    Raises:
      UserError: where the tokenizer lacks a token that the objective writes.
    """
    options: dict[str, Any] = chosen_options(config.corruption, ())
    return OBJECTIVES[config.objective](tokenizer, config.data.seq_len, **options)


__all__ = ["OBJECTIVES", "Objective", "build_objective", "causal", "positions_within"]
