"""The library: softmaxes, the Transformers that they are part of, and how these are trained."""

__version__ = "0.1.0"
