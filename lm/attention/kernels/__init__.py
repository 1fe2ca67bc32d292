"""Kernels that compute attention without storing a score, and the choice among them.

| device | weighting | by |
| ------ | --------- | -- |
| TPU | `mergeable`: what a row needs are sums | `attention`, one kernel for all |
| NVIDIA GPU | softmax, in half precision | `cudnn` |

All else is computed in blocks (`lm.attention.blockwise`).
"""

from lm.attention.kernels.choice import Choice, Kernel, attend_by, choose

__all__ = ["Choice", "Kernel", "attend_by", "choose"]
