"""The weights of a model's attention, of every layer and head, whatever its mechanism.

Contexts are linear in the values, so that the values of a unit vector for each key give the
weights themselves, beside the contexts, in one pass.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext
from flax.traverse_util import flatten_dict

from lm.attention import Mechanism, ScoreAttention
from lm.config import Config, replace_within
from lm.finetuning import method_names
from lm.model.batch import Batch
from lm.model.transformer import Transformer

_COLLECTION, _NAME = "intermediates", "attention_weights"
_VIRTUAL = {"prompt", "prefix"}  # methods of fine-tuning that add keys of their own


def has_attention_weights(config: Config) -> bool:
    """Whether `attention_weights` knows the model of a config: one without virtual tokens."""
    return not _VIRTUAL & set(method_names(config))


def attention_weights(
    model: Transformer, params: Mapping[str, Any], batch: Batch
) -> dict[str, jax.Array]:
    """The weights of each attention of a decoder or an encoder, in float32.

    Args:
      model, params: the model and all of its parameters.
      batch: B rows of L tokens.

    Returns:
      [layers, B, H, L, L] by what the attention is: "attention"; of a mechanism that has several,
      such as differential attention's two, "attention 1" and "attention 2". Rows of queries, which
      see the keys along the last axis; a gate or a norm behind the sum is not part of the weights.
    """
    plain = model.clone(config=replace_within(model.config, query_chunk_size=0))
    with nn.intercept_methods(_capture):
        _, found = plain.apply({"params": params}, batch, mutable=[_COLLECTION])
    layers: dict[tuple[int, int], jax.Array] = {}
    sown: dict[tuple[str, ...], Any] = dict(flatten_dict(found[_COLLECTION]))
    for path, captured in sown.items():
        number = re.search(r"layer_(\d+)", "/".join(path))
        for index, weights in enumerate(captured):
            # Layers that are scanned have an axis of layers before the rows.
            for layer, each in enumerate(weights if number is None else weights[None]):
                layers[index, int(number[1]) if number else layer] = each.astype(jnp.float32)
    kinds = sorted({index for index, _ in layers})
    names = ["attention"] if len(kinds) == 1 else [f"attention {kind + 1}" for kind in kinds]
    return {
        name: jnp.stack([layers[key] for key in sorted(layers) if key[0] == kind])
        for name, kind in zip(names, kinds, strict=True)
    }


def _capture(
    call: Callable[..., jax.Array],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: InterceptorContext,
) -> jax.Array:
    """Keeps the weights of mechanisms that have their own, or are the scores of others."""
    module = context.module
    weighs = isinstance(module, ScoreAttention) or (
        isinstance(module, Mechanism) and module.owns_weights
    )
    if not weighs or context.method_name != "__call__":
        return call(*args, **kwargs)
    query, key, value, *rest = args
    size, keys, groups = key.shape[:3]
    unit = jnp.broadcast_to(jnp.eye(keys, dtype=value.dtype)[:, None], (size, keys, groups, keys))
    both = call(query, key, jnp.concatenate([value, unit], axis=3), *rest, **kwargs)
    module.sow(_COLLECTION, _NAME, jnp.moveaxis(both[..., value.shape[3] :], 2, 1))
    return both[..., : value.shape[3]]
