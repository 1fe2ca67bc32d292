"""Learning from rewards of what the model itself writes. `REWARDS` maps every reward's name to its
function, and `policy_gradient` makes of it a training loss.

Adding a reward is one function in `rewards.py` and one entry in its table.
"""

from lm.training.policy.config import PolicyConfig
from lm.training.policy.gradient import policy_gradient
from lm.training.policy.rewards import REWARDS, Reward, reward_of_tokens

__all__ = ["REWARDS", "PolicyConfig", "Reward", "policy_gradient", "reward_of_tokens"]
