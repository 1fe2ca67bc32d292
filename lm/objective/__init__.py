"""What does a row teach? `OBJECTIVES` maps every objective's name to its class; one that is built
turns rows of tokens and a random key into inputs, targets and weights.

Adding an objective is one module in this package and one entry in the table below.
"""

from typing import Any

from lm.config import Config, chosen_options
from lm.data import Tokenizer
from lm.objective.causal import Causal, causal, positions_within
from lm.objective.masked import Masked
from lm.objective.objective import Objective
from lm.objective.prefix import Prefix
from lm.objective.seq2seq import Seq2seq
from lm.objective.span import Span

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
    return OBJECTIVES[config.objective](tokenizer, config.data.length, **options)


__all__ = [
    "OBJECTIVES",
    "Objective",
    "build_objective",
    "causal",
    "positions_within",
]
