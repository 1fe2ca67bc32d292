"""How will it be computed? In words, for a run's log: which path attention and the head take."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.attention import ATTENTIONS, Mask
from lm.attention.fused import has_kernel
from lm.attention.plan import describe
from lm.config import Config
from lm.model import Transformer


def attention_path(config: Config) -> str:
    """How attention will be computed in training, for the run's log."""
    model, attention = config.model, config.attention
    if ATTENTIONS[attention.mechanism].weighs:
        return attention.mechanism
    length, heads = config.data.length, model.heads
    size = model.head_size or model.features // heads
    array = jax.ShapeDtypeStruct((1, length, heads, size), jnp.dtype(model.dtype))
    causal = config.model.architecture == "decoder" and config.objective != "prefix"
    documents: Any = jax.ShapeDtypeStruct((1, length), jnp.int32)
    prefix = documents if config.objective == "prefix" else None
    mask = Mask(causal=causal, segments=documents, prefix=prefix)
    plain = (attention.mechanism, attention.weighting) == ("scores", "softmax")
    plain = plain and model.positions not in ("alibi", "relative") and attention.block is None
    kernel = plain and has_kernel(array, array, array, mask)
    return describe(length, causal, attention.block, kernel)


def output_path(config: Config, model: Transformer) -> str:
    """How the output head will be computed in training, for the run's log."""
    tokens = config.batch_size * config.data.length // config.accumulation
    return f"{config.output.head}, {model.output_head().describe(tokens)}"
