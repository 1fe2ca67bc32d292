"""Is this experiment possible? Every check of a config that needs no data and no device, made
before any work; each failure names the value, the limit and the remedy.
"""

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

from lm.attention import ATTENTIONS
from lm.config import Config, cache_folder, check_types
from lm.data import holds_pairs
from lm.data.objectives import OBJECTIVES
from lm.data.special_tokens import check_special_tokens
from lm.errors import UserError, one_of
from lm.evaluation.prompting.check import check_prompt
from lm.experiment.continual.check import check_continual
from lm.model.layers import ACTIVATIONS, GATED, NORM_POSITIONS
from lm.model.norms import NORMS
from lm.model.transformer import ARCHITECTURES, POSITIONS
from lm.output import OUTPUTS
from lm.softmax import WEIGHTINGS
from lm.tasks.check import check_task
from lm.training.optimizer import OPTIMIZERS, SCHEDULES
from lm.training.validate_options import check_options

_NAMES = {
    "objective": OBJECTIVES,
    "model.architecture": ARCHITECTURES,
    "model.activation": ACTIVATIONS,
    "model.norm": NORMS,
    "model.norm_position": NORM_POSITIONS,
    "model.position_embedding": POSITIONS,
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "attention.mechanism": ATTENTIONS,
    "attention.weighting": WEIGHTINGS,
    "output.head": OUTPUTS,
    "optimizer.name": OPTIMIZERS,
    "schedule.name": SCHEDULES,
}

# Of float32: what is smaller may be 0 there, and divide 0 by 0; what is nearer to 1 may be 1.
_SMALLEST, _BELOW_ONE = 1e-30, 1 - 2**-24

# Closed at the bottom, open at the top.
_RANGES = {
    "seed": (0, 2**31),
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "grad_accum_steps": (1, math.inf),
    "data.seq_len": (1, math.inf),
    "data.vocab_size": (2, 1_000_001),
    "model.num_layers": (1, 10_001),
    "model.d_model": (1, math.inf),
    "model.num_heads": (1, 65_537),
    "model.num_kv_heads": (1, 65_537),
    "model.head_dim": (1, math.inf),
    "model.embedding_dim": (1, math.inf),
    "model.num_token_types": (0, math.inf),
    "model.relative_num_buckets": (4, 1_000_001),
    "model.relative_max_distance": (1, 1_000_001),
    "model.mlp_dim": (1, math.inf),
    "model.max_seq_len": (1, math.inf),
    "model.dropout": (0, 1),
    "model.init_std": (0, math.inf),
    "attention.query_chunk_size": (0, math.inf),
    "corruption.mask_rate": (0, 1),
    "corruption.mean_span_length": (1, math.inf),
    "attention.lambda_init": (0, 1),
    "attention.random_features": (1, 65_537),
    "attention.k": (1, math.inf),
    "output.token_chunk_size": (0, math.inf),
    "output.z_loss": (0, math.inf),
    "output.label_smoothing": (0, 1),
    "output.focal": (0, math.inf),
    "output.confidence_penalty": (0, math.inf),
    "output.mixtures": (1, 65_537),
    "output.gates": (1, math.inf),
    "output.pieces": (1, 65),
    "output.divisor": (1, math.inf),
    "output.classes": (1, math.inf),
    "output.samples": (1, math.inf),
    "output.every": (1, 100_000_001),
    "output.double_every": (0, math.inf),
    "task.max_new_tokens": (0, math.inf),
    "finetuning.num_layers": (1, math.inf),
    "finetuning.rank": (1, math.inf),
    "finetuning.adapter_dim": (1, math.inf),
    "finetuning.num_virtual_tokens": (1, math.inf),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.b1": (0, _BELOW_ONE),
    "optimizer.b2": (0, _BELOW_ONE),
    "optimizer.eps": (_SMALLEST, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "optimizer.ema_decay": (0, _BELOW_ONE),
    "schedule.warmup_steps": (0, math.inf),
    "schedule.final_lr_ratio": (0, math.inf),
    "schedule.decay_fraction": (0, 1),
    "schedule.unfreeze_every": (0, math.inf),
    "regularization.l1": (0, math.inf),
    "regularization.l2": (0, math.inf),
    "regularization.l2_sp": (0, math.inf),
    "regularization.ewc": (0, math.inf),
    "regularization.mixout": (0, 1),
    "regularization.stochastic_depth": (0, 1),
    "regularization.word_dropout": (0, 1),
    "regularization.rdrop": (0, math.inf),
    "regularization.smart": (0, math.inf),
    "regularization.freelb": (0, math.inf),
    "regularization.penalty_adaptation": (0, math.inf),
    "regularization.target_gap": (0, math.inf),
    "regularization.mixup": (0, math.inf),
    "regularization.mixup_layer": (0, math.inf),
    "regularization.token_deletion": (0, 1),
    "regularization.token_swap": (0, 1),
    "regularization.mask_spans": (0, 1),
    "regularization.sparsity": (0, 1),
    "regularization.pruning_start": (0, 1),
    "checkpoint.every": (0, math.inf),
    "checkpoint.max_to_keep": (1, math.inf),
    "evaluation.every": (0, math.inf),
    "evaluation.num_examples": (0, math.inf),
    "evaluation.patience": (0, math.inf),
    "log.every": (1, math.inf),
    "prompt.num_shots": (0, math.inf),
    "continual.replay_fraction": (0, 1),
    "continual.memory_size": (0, math.inf),
    "continual.stage": (0, math.inf),
}

_POSITIVE = (
    "data.validation_fraction",
    "model.norm_eps",
    "model.rope_theta",
    "model.score_scale",
    "epochs",
    "corruption.mask_rate",
    "optimizer.layerwise_lr_decay",
    "regularization.adversarial_radius",
    "regularization.pruning_end",
    "regularization.distillation_temperature",
    "attention.cap",
    "attention.temperature",
    "output.cap",
    "output.temperature",
    "output.reach",
    "output.sigma",
    "output.epsilon",
    "output.emphasis",
)


def check(config: Config) -> None:
    """Raises UserError for the first impossible setting."""
    check_types(config)
    for key, names in _of_sides(_NAMES).items():
        if _get(config, key) is not None:
            one_of(key, _get(config, key), names)
    for key, (low, high) in _of_sides(_RANGES).items():
        value = _get(config, key)
        if value is not None and not low <= value < high:
            limit = f"at least {low}" + ("" if high == math.inf else f" and below {high}")
            raise UserError(f"config.{key} = {value}: must be {limit}")
    for key in _of_sides(dict.fromkeys(_POSITIVE)):
        value = _get(config, key)
        if value is not None and not value >= _SMALLEST:
            raise UserError(f"config.{key} = {value}: must be above 0, at least {_SMALLEST}")
    check_special_tokens(config)
    cache_folder(config, "data")  # raises where there is none
    if config.data.validation_fraction >= 1:
        raise UserError(
            f"config.data.validation_fraction = {config.data.validation_fraction}: must be below 1"
        )
    if config.task.name:
        check_task(config)
    else:
        _check_objective(config)
    if config.prompt.source:
        check_prompt(config)
    check_continual(config)
    check_options(config)
    _check_shapes(config)


def check_recorded(config: Config, file: Any) -> None:
    """As `check`, of the config that a run's config.json holds, which the message names."""
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{file}: {error}; restore that file") from None


def _check_shapes(config: Config) -> None:
    model = config.model
    if model.head_dim is None and model.d_model % model.num_heads:
        lower = model.d_model - model.d_model % model.num_heads
        raise UserError(
            f"config.model.d_model = {model.d_model} is not divisible by config.model.num_heads = "
            f"{model.num_heads}; use {lower or model.num_heads} or {lower + model.num_heads}, or "
            f"set head_dim"
        )
    if model.num_kv_heads is not None and model.num_heads % model.num_kv_heads:
        raise UserError(
            f"config.model.num_kv_heads = {model.num_kv_heads} does not divide "
            f"config.model.num_heads = "
            f"{model.num_heads}; use one of {_divisors(model.num_heads)}"
        )
    head_dim = model.head_dim or model.d_model // model.num_heads
    if model.position_embedding == "rotary" and head_dim % 2:
        raise UserError(
            f"rotary positions turn pairs, but the head size is {head_dim}; use an even one"
        )
    width = model.embedding_dim or model.d_model
    if model.position_embedding == "sinusoidal" and width % 2:
        name = "embedding_dim" if model.embedding_dim else "d_model"
        raise UserError(
            f"sinusoidal positions need an even width, not config.model.{name} = {width}"
        )
    if model.position_embedding == "relative":
        _check_relative(model)
    if model.head_transform and model.activation in GATED:
        raise UserError(
            f"config.model.head_transform has one matrix, but {model.activation} gates one by "
            "another; use gelu or relu, or no transform"
        )
    if config.output.tied and width != model.d_model and not model.head_transform:
        raise UserError(
            f"a tied head reads words of config.model.embedding_dim = {width}, but hidden "
            f"states have {model.d_model}; set model.head_transform=True or output.tied=False"
        )
    if config.data.seq_len > model.max_seq_len:
        raise UserError(
            f"config.data.seq_len = {config.data.seq_len} is longer than "
            f"config.model.max_seq_len = "
            f"{model.max_seq_len} positions; shorten the rows or raise max_length"
        )
    if config.batch_size % config.grad_accum_steps:
        raise UserError(
            f"config.grad_accum_steps = {config.grad_accum_steps} does not divide "
            f"config.batch_size = "
            f"{config.batch_size}; use one of {_divisors(config.batch_size)}"
        )
    if config.epochs is None and config.schedule.warmup_steps >= config.steps:
        raise UserError(
            f"config.schedule.warmup_steps = {config.schedule.warmup_steps} must be below "
            f"config.steps = "
            f"{config.steps}; shorten the warm-up"
        )
    if config.evaluation.patience and not config.evaluation.every:
        raise UserError(
            f"config.evaluation.patience = {config.evaluation.patience} counts evaluations, of "
            "which config.evaluation.every = 0 makes none before the end; set it"
        )


def _check_objective(config: Config) -> None:
    """The objective trains this architecture, and the source holds what it learns from."""
    objective, architecture = OBJECTIVES[config.objective], config.model.architecture
    if architecture != objective.architecture:
        raise UserError(
            f"objective {config.objective} trains a model of config.model.architecture = "
            f"{objective.architecture!r}, not {architecture!r}"
        )
    if holds_pairs(config.data.source) != objective.pairs:
        has, wants = ("texts", "pairs") if objective.pairs else ("pairs", "texts")
        remedy = "docstrings or pairs:PATTERN" if objective.pairs else "stdlib or files:PATTERN"
        raise UserError(
            f"objective {config.objective} learns from {wants}, but config.data.source = "
            f"{config.data.source!r} has {has}; use {remedy}"
        )


def _of_sides(checks: Mapping[str, Any]) -> dict[str, Any]:
    """Checks of config.attention hold for the groups of an encoder-decoder's other sides too."""
    sides = ("encoder_attention", "cross_attention")
    shared = {key: value for key, value in checks.items() if key.startswith("attention.")}
    return {**checks} | {
        f"{side}.{key.partition('.')[2]}": value for side in sides for key, value in shared.items()
    }


def _check_relative(model: Config) -> None:
    """Buckets must halve for both sides and for near and far, and far must be beyond near."""
    sides = 1 if model.architecture == "decoder" else 2
    if model.relative_num_buckets % (2 * sides):
        raise UserError(
            f"config.model.relative_num_buckets = {model.relative_num_buckets} is no multiple of "
            f"{2 * sides}; use {model.relative_num_buckets - model.relative_num_buckets % 4 + 4}"
        )
    if model.relative_max_distance < model.relative_num_buckets:
        raise UserError(
            f"config.model.relative_max_distance = {model.relative_max_distance} is below "
            f"config.model.relative_num_buckets = {model.relative_num_buckets}; raise it"
        )


def _get(config: Config, key: str) -> Any:
    return functools.reduce(operator.getitem, key.split("."), config)


def _divisors(n: int) -> str:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return ", ".join(map(str, sorted({*small, *(n // d for d in small)})))
