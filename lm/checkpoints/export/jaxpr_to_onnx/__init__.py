"""Writes a function as an ONNX model: the operations of its jaxpr one by one, as nodes of opset 18.

A few dozen operations make up every model here that has no loop; one without a form in ONNX is
refused by name. Nothing but the package `onnx` is needed.
"""

from lm.checkpoints.export.jaxpr_to_onnx.convert import to_onnx

__all__ = ["to_onnx"]
