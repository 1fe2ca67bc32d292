"""Describes, for the log of a run, how attention and the output head are computed."""

import math
from typing import Any

import jax

from lm.attention import ATTENTIONS, Mask
from lm.attention.chunking import describe
from lm.attention.kernels import choose
from lm.attention.sequence import describe_split, is_ring
from lm.devices.sharding import SEQUENCE_AXIS
from lm.training.layerwise_lr import shared_layer_rate
from lm.training.program import Program


def describe_paths(program: Program) -> str:
    """How attention and the head are computed, and at which rate one shared layer learns."""
    attention, output, config = attention_path(program), output_path(program), program.config
    rate = shared_layer_rate(config.optimizer.layerwise_lr_decay, config.model.stack)
    return f"attention {attention}; {output}{rate}"


def attention_path(program: Program) -> str:
    """How attention (of an encoder-decoder, its decoder's) will be computed, for the run's log."""
    model = program.model.config
    attention = model.stack.block.attention
    if ATTENTIONS[attention.mechanism].owns_weights:
        return attention.mechanism
    batch = _batch(program)
    length = batch.inputs.shape[-1]
    parts = program.mesh.shape[SEQUENCE_AXIS]
    if parts > 1 and attention.query_chunk_size != 0:
        ring = is_ring(attention.weighting, ATTENTIONS[attention.mechanism].mixes_heads)
        return describe_split(length, parts, ring, attention.query_chunk_size)
    rows = math.prod(batch.inputs.shape[:-1])
    query, key = (
        jax.ShapeDtypeStruct((rows, length, heads, attention.head_dim), model.numerics.dtype)
        for heads in (attention.num_heads, attention.num_kv_heads)
    )
    causal = model.architecture != "encoder" and batch.prefix is None
    mask = Mask(causal=causal, segments=batch.segments, prefix=batch.prefix)
    without = describe(length, causal, attention.query_chunk_size)
    if attention.query_chunk_size is not None:
        return without
    alone = ATTENTIONS[attention.mechanism].scores_alone
    alone = alone and model.stack.position_embedding not in ("alibi", "relative")
    options = dict(attention.weighting_options)
    chosen = choose(query, key, key, mask, attention.weighting, alone, options)
    if chosen.kernel:
        return f"by {chosen.kernel.value}"
    return f"{without} (no kernel: {chosen.reason})" if chosen.reason else without


def output_path(program: Program) -> str:
    """How the output head will be computed in training, for the run's log."""
    tokens = _batch(program).targets.size
    return f"{program.model.config.head.head}, {program.model.output_head().describe(tokens)}"


def _batch(program: Program) -> Any:
    """Shapes and types of what is computed at once in a step."""
    size = program.config.batch_size // program.config.grad_accum_steps
    rows = program.objective.abstract_rows(size)
    return jax.eval_shape(lambda rows: program.objective(rows, jax.random.key(0)), rows)
