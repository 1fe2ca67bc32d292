"""Explains a model's decision on a text: attention, attributions of tokens, and the logit lens."""

from lm.evaluation.explanation.explain import REPLACEMENTS, explain
from lm.evaluation.explanation.report import explain_run

__all__ = ["REPLACEMENTS", "explain", "explain_run"]
