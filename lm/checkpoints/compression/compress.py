"""A run with its weights compressed: the table of the ways, and which parameters they change."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.checkpoints.compression.dynamic import DynamicInt8
from lm.checkpoints.compression.quantize import dequantized_params, quantize
from lm.checkpoints.restored import Restored
from lm.finetuning.adapted import AdaptedTransformer
from lm.model.transformer import Transformer
from lm.training.program import with_model

# The axis along which weights of these names share scales: a kernel's inputs, a token's vector.
_AXES = {"kernel": -2, "embedding": -1, "table": -1}
_GROUP = 32  # weights of 4 bits that share a scale


@dataclasses.dataclass(frozen=True)
class Compression:
    """A way to compress weights.

    Attributes:
      bits: of a weight.
      group: weights that share a scale; None: all of an output, or of a token.
      dynamic: linear layers multiply integers, quantizing activations as they come.
    """

    bits: int
    group: int | None = None
    dynamic: bool = False


COMPRESSIONS = {
    "int8": Compression(8),
    "int4": Compression(4, _GROUP),
    "int8_dynamic": Compression(8, dynamic=True),
}


def compressed(run: Restored, name: str | None) -> Restored:
    """A run that computes with what its compressed weights stand for; None leaves it as it is.

    Args:
      run: of any weighting and head.
      name: one of `COMPRESSIONS`.
    """
    if name is None:
        return run
    params = jax.tree.map(
        lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding),
        dequantized_params(quantized_params(run.params, name)),
        dict(run.params),
    )
    program = run.program
    if COMPRESSIONS[name].dynamic:
        program = with_model(program, _dynamic(program.model))
    return dataclasses.replace(run, params=params, program=program, compression=name)


def quantized_params(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Parameters on the host with `Quantized` in the place of kernels and tables of tokens; others,
    such as biases and norms, are as they are.
    """
    how = COMPRESSIONS[name]
    flat: dict[tuple[str, ...], Any] = dict(flatten_dict(params))
    found = {}
    for path, leaf in flat.items():
        host = np.asarray(leaf)
        axis = _AXES.get(path[-1])
        if axis is None or host.ndim < 2 or (how.bits == 4 and host.shape[axis] % 2):
            found[path] = host
        else:
            found[path] = quantize(host, how.bits, axis, how.group)
    return unflatten_dict(found)


def stored_bytes(params: Mapping[str, Any]) -> int:
    """Bytes of all arrays of parameters, quantized or not."""
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(params))


def _dynamic(model: Transformer) -> Transformer:
    before = model.interceptors if isinstance(model, AdaptedTransformer) else ()
    return AdaptedTransformer(
        model.config, model.vocab_size, model.outputs, interceptors=(*before, DynamicInt8())
    )
