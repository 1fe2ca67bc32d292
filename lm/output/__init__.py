"""How do hidden states become a loss and a distribution over words? `OUTPUTS` maps every head's
name to its module; never ask a head for logits, since some have none.
"""

from lm.output.head import Head
from lm.output.mixture import MixtureHead
from lm.output.softmax import SoftmaxHead

OUTPUTS = {"softmax": SoftmaxHead, "mixture": MixtureHead}

__all__ = ["OUTPUTS", "Head"]
