"""What does the softmax of a trained model do to rank, gradient, argmax and confidence?
`diagnose(run, sample)` measures a restored run, `write` keeps the numbers and a picture, and
`lines` says them.
"""

from lm.evaluation.diagnostics.diagnosis import diagnose
from lm.evaluation.diagnostics.report import lines, write

__all__ = ["diagnose", "lines", "write"]
