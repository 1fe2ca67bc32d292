"""Kernels that compute attention without storing a score, and the choice among them.

| device | weighting | what a row needs | by |
| ------ | --------- | ---------------- | -- |
| TPU | `pointwise` | nothing | `families.Pointwise` |
| TPU | with `terms` | their sum | `families.Terms` |
| TPU | with `exponents` | the sum of their exponentials | `families.Exponential` |
| TPU | with `entmax_alpha` | a threshold | `threshold.Threshold` |
| TPU | `top_k` | its k-th largest score | `top_k.TopK` |
| NVIDIA GPU | softmax, in half precision | | `cudnn` |

Temperature, `log_length`, `ssmax` and the like are exponents; mechanisms that call `attend` (gated,
differential) come here with theirs. All else, such as a random weighting, or scores to which
something is added, is computed in blocks (`lm.attention.blockwise`); a run's log says why.
"""

from lm.attention.kernels.choice import Choice, Kernel, attend_by, choose

__all__ = ["Choice", "Kernel", "attend_by", "choose"]
