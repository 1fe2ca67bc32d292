"""Compresses a trained model: weights in 8 or 4 bits, and products of integers. `COMPRESSIONS` has
each way by its name.
"""

from lm.checkpoints.compression.compress import (
    COMPRESSIONS,
    Compression,
    compressed,
    quantized_params,
    stored_bytes,
)
from lm.checkpoints.compression.quantize import Quantized, dequantized_params

__all__ = [
    "COMPRESSIONS",
    "Compression",
    "Quantized",
    "compressed",
    "dequantized_params",
    "quantized_params",
    "stored_bytes",
]
