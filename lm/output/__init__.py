"""How do hidden states become a loss and a distribution over words? `OUTPUTS` maps every head's
name to its module; never ask a head for logits, since some have none.
"""

from lm.output.adaptive import AdaptiveHead
from lm.output.base import Head
from lm.output.class_factored import ClassFactoredHead
from lm.output.crf import CrfHead
from lm.output.gaussian import GaussianHead
from lm.output.gumbel import GumbelHead
from lm.output.hierarchical import HierarchicalHead
from lm.output.independent import SigmoidHead, SquaredHead
from lm.output.mixtape import MixtapeHead
from lm.output.mixture import MixtureHead, MixtureOfContextsHead
from lm.output.plif import PlifHead
from lm.output.sampled import DynamicHead, NoiseContrastiveHead, SampledHead
from lm.output.sigsoftmax import SigsoftmaxHead
from lm.output.softmax import SoftmaxHead
from lm.output.sparse import EntmaxHead, SparsemaxHead
from lm.output.von_mises_fisher import VonMisesFisherHead

OUTPUTS = {
    "softmax": SoftmaxHead,
    "mixture": MixtureHead,
    "mixture_of_contexts": MixtureOfContextsHead,
    "mixtape": MixtapeHead,
    "sigsoftmax": SigsoftmaxHead,
    "plif": PlifHead,
    "adaptive": AdaptiveHead,
    "hierarchical": HierarchicalHead,
    "class_factored": ClassFactoredHead,
    "sampled": SampledHead,
    "nce": NoiseContrastiveHead,
    "dynamic": DynamicHead,
    "gumbel": GumbelHead,
    "sparsemax": SparsemaxHead,
    "entmax": EntmaxHead,
    "sigmoid": SigmoidHead,
    "squared": SquaredHead,
    "gaussian": GaussianHead,
    "von_mises_fisher": VonMisesFisherHead,
    "crf": CrfHead,
}

__all__ = ["OUTPUTS", "Head"]
