"""Diagnoses the output softmax of a trained model: rank, gradient, argmax and calibration."""

from lm.evaluation.diagnostics.diagnosis import diagnose
from lm.evaluation.diagnostics.report import diagnose_run, lines, write

__all__ = ["diagnose", "diagnose_run", "lines", "write"]
