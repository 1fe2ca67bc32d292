"""How do hidden states become a loss and a distribution over words? `OUTPUTS` maps every head's
name to its module; never ask a head for logits, since some have none.
"""

from lm.output.gaussian import GaussianHead
from lm.output.head import Head
from lm.output.mixture import MixtureHead
from lm.output.plif import PlifHead
from lm.output.sigsoftmax import SigsoftmaxHead
from lm.output.softmax import SoftmaxHead

OUTPUTS = {
    "softmax": SoftmaxHead,
    "sigsoftmax": SigsoftmaxHead,
    "plif": PlifHead,
    "gaussian": GaussianHead,
    "mixture": MixtureHead,
}

__all__ = ["OUTPUTS", "Head"]
