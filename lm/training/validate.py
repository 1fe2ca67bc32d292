"""Checks a config before any work, without data or devices: types, the bounds of each key, and the
rules between keys. Each failure names the value, the limit and the remedy.
"""

import math

from lm.config import Config, cache_folder, check_types
from lm.data import holds_pairs
from lm.data.objectives import OBJECTIVES
from lm.data.special_tokens import check_special_tokens
from lm.errors import UserError, one_of
from lm.model.activations import GATED
from lm.model.resolve import model_config
from lm.tasks.check import check_task
from lm.training.config import config_keys
from lm.training.trackers import TRACKERS
from lm.training.validate_options import check_options


def check(config: Config) -> None:
    """Raises UserError for the first impossible setting."""
    check_types(config)
    for key in config_keys():
        key.check(config)
    check_special_tokens(config)
    for name in config.log.trackers:
        one_of("log.trackers", name, TRACKERS)
    cache_folder(config, "data")  # raises where there is none
    if config.task.name:
        check_task(config)
        if config.evaluation.num_bytes is not None:
            raise UserError(
                f"config.evaluation.num_bytes = {config.evaluation.num_bytes} is of text, and "
                f"task {config.task.name} counts examples; use config.evaluation.num_examples"
            )
    else:
        _check_objective(config)
    check_options(config)
    _check_shapes(config)


def check_recorded(config: Config, file: object) -> None:
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
            "set head_dim"
        )
    if model.num_kv_heads is not None:
        _check_divides("model.num_kv_heads", model.num_kv_heads, "model.num_heads", model.num_heads)
    resolved = model_config(config)
    head_dim, width = resolved.stack.block.attention.head_dim, resolved.embedding.embedding_dim
    if model.position_embedding == "rotary" and head_dim % 2:
        raise UserError(
            f"rotary positions turn pairs, but the head size is {head_dim}; use an even one"
        )
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
            f"a tied head reads embeddings of config.model.embedding_dim = {width}, but hidden "
            f"states have {model.d_model}; set model.head_transform=True or output.tied=False"
        )
    if config.data.seq_len > model.max_seq_len:
        raise UserError(
            f"config.data.seq_len = {config.data.seq_len} is longer than config.model.max_seq_len "
            f"= {model.max_seq_len} positions; shorten the rows or raise max_seq_len"
        )
    _check_divides("grad_accum_steps", config.grad_accum_steps, "batch_size", config.batch_size)
    if config.epochs is None and config.schedule.warmup_steps >= config.steps:
        raise UserError(
            f"config.schedule.warmup_steps = {config.schedule.warmup_steps} must be below "
            f"config.steps = {config.steps}; shorten the warm-up"
        )
    _check_alarm(config)
    if config.evaluation.patience and not config.evaluation.every:
        raise UserError(
            f"config.evaluation.patience = {config.evaluation.patience} counts evaluations, of "
            "which config.evaluation.every = 0 makes none before the end; set it"
        )


def _check_alarm(config: Config) -> None:
    alarm = config.alarm
    if alarm.policy != "warn" and not (alarm.loss_spike or alarm.grad_norm):
        raise UserError(
            f"config.alarm.policy = {alarm.policy!r} is what follows an alarm, of which there is "
            "none; set config.alarm.loss_spike or config.alarm.grad_norm"
        )
    if alarm.policy == "rollback" and not config.checkpoint.every:
        raise UserError(
            "config.alarm.policy = 'rollback' goes back to a checkpoint, of which "
            "config.checkpoint.every = 0 makes none before the end; set it"
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


def _check_divides(key: str, n: int, whole_key: str, whole: int) -> None:
    if whole % n:
        small = [d for d in range(1, math.isqrt(whole) + 1) if whole % d == 0]
        divisors = ", ".join(map(str, sorted({*small, *(whole // d for d in small)})))
        raise UserError(
            f"config.{key} = {n} does not divide config.{whole_key} = {whole}; use one of "
            f"{divisors}"
        )
