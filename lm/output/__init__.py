"""Output heads: hidden states to a loss and a distribution over the vocabulary or the classes.

`OUTPUTS` maps every head's name to its module. A head's `loss` and `log_probs` are all that it has
in common with others: some have no logits.
"""

from lm.output.adaptive import AdaptiveHead
from lm.output.base import Head
from lm.output.class_factored import ClassFactoredHead
from lm.output.crf import CrfHead
from lm.output.gumbel import GumbelHead
from lm.output.hierarchical import HierarchicalHead
from lm.output.independent import SigmoidHead, SquaredHead
from lm.output.mixtape import MixtapeHead
from lm.output.mixture import MixtureHead, MixtureOfContextsHead
from lm.output.plif import PlifHead
from lm.output.sampled import DynamicHead, NoiseContrastiveHead, SampledHead
from lm.output.softmax import GaussianHead, SigsoftmaxHead, SoftmaxHead
from lm.output.sparse import EntmaxHead, SparsemaxHead
from lm.output.von_mises_fisher import VonMisesFisherHead

OUTPUTS: dict[str, type[Head]] = {
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
