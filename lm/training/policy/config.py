"""Types config.policy: what is rewarded, how much is written, and how far the model may go."""

import dataclasses
from typing import Annotated

from lm.config import Key
from lm.training.policy.rewards import REWARDS


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Learning from rewards.

    Attributes:
      reward: a name of `REWARDS`; "": the model learns from text.
      prompt_length: P, tokens at the start of each row that the model continues.
      max_new_tokens: T, of a continuation, unless END comes before.
      num_samples: n, continuations of each prompt.
      kl: b, the price of a nat of divergence from the model that training began with.
    """

    reward: Annotated[str, Key("policy.reward", one_of=("", *REWARDS))]
    prompt_length: Annotated[int, Key("policy.prompt_length", at_least=1)]
    max_new_tokens: Annotated[int, Key("policy.max_new_tokens", at_least=1)]
    num_samples: Annotated[int, Key("policy.num_samples", at_least=2)]
    kl: Annotated[float, Key("policy.kl", at_least=0)]
