"""TPU kernels that compute the statistics of logits without storing a logit, and the choice between
these and a loss that stores some.
"""

from lm.output.kernels.choice import Choice, choose
from lm.output.kernels.fused import fused_logit_stats

__all__ = ["Choice", "choose", "fused_logit_stats"]
