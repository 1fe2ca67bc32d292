"""Runs a model with a cache of keys and values."""

from collections.abc import Mapping
from typing import Any

import jax

from lm.model.batch import Batch
from lm.model.transformer import Transformer


def cached_head_inputs(
    model: Transformer,
    params: Mapping[str, Any],
    cache: Mapping[str, Any] | None,
    batch: Batch,
    offset: jax.Array,
    padding: jax.Array,
) -> tuple[jax.Array, Any]:
    """The inputs of the head at each token, [B, n, D], and the updated cache.

    Args:
      model, params: the model and its parameters.
      cache: what earlier calls gave; None: a new one.
      batch: rows [B, n].
      offset: the place of their first token in the cache.
      padding: boolean [B, S], the places of the cache that may be seen.
    """
    hidden, updated = model.apply(
        {"params": params} | ({} if cache is None else {"cache": cache}),
        batch,
        offset=offset,
        padding=padding,
        cache_length=padding.shape[1],
        method="head_inputs",
        mutable=["cache"],
    )
    return hidden, updated["cache"]
