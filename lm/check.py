"""Is this experiment possible? Every check of a config that needs no data and no device, made
before any work; each failure names the value, the limit and the remedy.
"""

import difflib
import functools
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from lm.attention import ATTENTIONS
from lm.attention.gated import GATES
from lm.config import Config, chosen_options
from lm.errors import UserError
from lm.layers import ACTIVATIONS, NORM_POSITIONS
from lm.model import ARCHITECTURES, POSITIONS
from lm.norm import NORMS
from lm.objective import OBJECTIVES
from lm.optimizer import OPTIMIZERS, SCHEDULES
from lm.output import OUTPUTS
from lm.output.head import Head
from lm.softmax import WEIGHTINGS

_NAMES = {
    "objective": OBJECTIVES,
    "model.architecture": ARCHITECTURES,
    "model.activation": ACTIVATIONS,
    "model.norm": NORMS,
    "model.norm_position": NORM_POSITIONS,
    "model.positions": POSITIONS,
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "attention.mechanism": ATTENTIONS,
    "attention.weighting": WEIGHTINGS,
    "output.head": OUTPUTS,
    "optimizer.name": OPTIMIZERS,
    "schedule.name": SCHEDULES,
}

# Closed at the bottom, open at the top.
_RANGES = {
    "seed": (0, 2**31),
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "accumulation": (1, math.inf),
    "data.length": (1, math.inf),
    "data.vocab_size": (2, 1_000_001),
    "model.layers": (1, math.inf),
    "model.features": (1, math.inf),
    "model.heads": (1, math.inf),
    "model.kv_heads": (1, math.inf),
    "model.head_size": (1, math.inf),
    "model.hidden": (1, math.inf),
    "model.max_length": (1, math.inf),
    "model.dropout": (0, 1),
    "model.init_scale": (0, math.inf),
    "attention.block": (0, math.inf),
    "attention.lambda_init": (0, 1),
    "attention.random_features": (1, math.inf),
    "attention.k": (1, math.inf),
    "output.z_loss": (0, math.inf),
    "output.label_smoothing": (0, 1),
    "output.mixtures": (1, math.inf),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.b1": (0, 1),
    "optimizer.b2": (0, 1),
    "optimizer.eps": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "optimizer.ema": (0, 1),
    "schedule.warmup": (0, math.inf),
    "schedule.final": (0, math.inf),
    "schedule.decay": (0, 1),
    "checkpoint.every": (0, math.inf),
    "checkpoint.keep": (1, math.inf),
    "evaluation.every": (0, math.inf),
    "evaluation.rows": (0, math.inf),
    "log.every": (1, math.inf),
}

_POSITIVE = (
    "data.validation",
    "attention.cap",
    "attention.temperature",
    "output.cap",
    "output.temperature",
)


def check(config: Config) -> None:
    """Raises UserError for the first impossible setting."""
    for key, names in _NAMES.items():
        _one_of(key, _get(config, key), names)
    for key, (low, high) in _RANGES.items():
        value = _get(config, key)
        if value is not None and not low <= value < high:
            limit = f"at least {low}" + ("" if high == math.inf else f" and below {high}")
            raise UserError(f"config.{key} = {value}: must be {limit}")
    for key in _POSITIVE:
        value = _get(config, key)
        if value is not None and not value > 0:
            raise UserError(f"config.{key} = {value}: must be above 0")
    if config.data.validation >= 1:
        raise UserError(f"config.data.validation = {config.data.validation}: must be below 1")
    _check_options(config)
    _check_shapes(config)


def _check_shapes(config: Config) -> None:
    model = config.model
    if model.head_size is None and model.features % model.heads:
        lower = model.features - model.features % model.heads
        raise UserError(
            f"config.model.features = {model.features} is not divisible by config.model.heads = "
            f"{model.heads}; use {lower or model.heads} or {lower + model.heads}, or set head_size"
        )
    if model.kv_heads is not None and model.heads % model.kv_heads:
        raise UserError(
            f"config.model.kv_heads = {model.kv_heads} does not divide config.model.heads = "
            f"{model.heads}; use one of {_divisors(model.heads)}"
        )
    head_size = model.head_size or model.features // model.heads
    if model.positions == "rotary" and head_size % 2:
        raise UserError(
            f"rotary positions turn pairs, but the head size is {head_size}; use an even one"
        )
    if model.positions == "sinusoidal" and model.features % 2:
        raise UserError(
            f"sinusoidal positions need even features, not config.model.features = {model.features}"
        )
    if config.data.length > model.max_length:
        raise UserError(
            f"config.data.length = {config.data.length} is longer than config.model.max_length = "
            f"{model.max_length} positions; shorten the rows or raise max_length"
        )
    if config.batch_size % config.accumulation:
        raise UserError(
            f"config.accumulation = {config.accumulation} does not divide config.batch_size = "
            f"{config.batch_size}; use one of {_divisors(config.batch_size)}"
        )
    if config.schedule.warmup >= config.steps:
        raise UserError(
            f"config.schedule.warmup = {config.schedule.warmup} must be below config.steps = "
            f"{config.steps}; shorten the warm-up"
        )
    if config.objective == "causal" and model.architecture != "decoder":
        raise UserError(
            f"objective causal trains a decoder, not config.model.architecture = "
            f"{model.architecture!r}"
        )


def _check_options(config: Config) -> None:
    """Options must belong to the chosen mechanism, to its weighting, and to the chosen head."""
    weighting, name = config.attention.weighting, config.attention.mechanism
    mechanism = ATTENTIONS[name]
    chosen = chosen_options(config.attention, ("mechanism", "weighting", "block", "learn"))
    own, owner = mechanism.own_options(), f"mechanism {name}"
    if not mechanism.weighs:
        owner = f"weighting {weighting}" + (f" with {owner}" if name != "scores" else "")
        _belong(chosen, own | set(WEIGHTINGS[weighting].options), "attention", owner)
        _check_weighting(config, chosen)
    elif weighting != "softmax" or config.attention.learn:
        key, value = (
            ("learn", tuple(config.attention.learn))
            if weighting == "softmax"
            else ("weighting", weighting)
        )
        raise UserError(
            f"config.attention.{key} = {value!r} is not used by {owner}, which has weights of its "
            "own; leave it out"
        )
    else:
        _belong(chosen, own, "attention", owner)
    _check_mechanism(config)
    head = OUTPUTS[config.output.head]
    own = set(head.__dataclass_fields__) - set(Head.__dataclass_fields__)
    _belong(chosen_options(config.output, ("head", "tied")), own, "output", config.output.head)


def _check_mechanism(config: Config) -> None:
    """Architecture, positions and sizes must suit the chosen mechanism."""
    model, attention = config.model, config.attention
    name, mechanism = attention.mechanism, ATTENTIONS[attention.mechanism]
    if mechanism.causal and model.architecture != "decoder":
        raise UserError(
            f"config.attention.mechanism = {name!r} is causal only, but "
            f"config.model.architecture = {model.architecture!r} sees both sides; use a decoder"
        )
    if model.positions in ("rotary", "alibi") and model.positions not in mechanism.positions:
        others = [p for p in POSITIONS if p not in ("rotary", "alibi") or p in mechanism.positions]
        raise UserError(
            f"config.model.positions = {model.positions!r} shape scores that mechanism {name} does "
            f"not have; use {', '.join(others[:-1])} or {others[-1]}"
        )
    if attention.gate is not None:
        _one_of("attention.gate", attention.gate, GATES)
    if attention.horizon is not None and attention.horizon < model.max_length:
        raise UserError(
            f"config.attention.horizon = {attention.horizon} is below config.model.max_length = "
            f"{model.max_length}, and weights beyond it are negative; raise it or lower max_length"
        )
    unit = 4 if model.positions == "rotary" else 2
    head_size = model.head_size or model.features // model.heads
    if name == "differential" and head_size % unit:
        raise UserError(
            f"mechanism differential splits each head in two, but with {model.positions} positions "
            f"the head size {head_size} is no multiple of {unit}; use one"
        )


def _check_weighting(config: Config, chosen: Mapping[str, Any]) -> None:
    """What is learned can be, and starts inside its range; fixed options lie in theirs."""
    weighting = config.attention.weighting
    record = WEIGHTINGS[weighting]
    for name in config.attention.learn:
        if name not in record.learnable:
            can = ", ".join(record.learnable) or "none"
            raise UserError(
                f"config.attention.learn has {name!r}, but weighting {weighting} can learn: {can}"
            )
        limits, start = record.learnable[name], {**record.options, **chosen}[name]
        if start is None:
            raise UserError(
                f"config.attention.learn has {name!r}, which needs a number to start from; set "
                f"config.attention.{name}"
            )
        if not limits.low < start < limits.high:
            raise UserError(
                f"config.attention.{name} = {start} cannot be learned from there; start above "
                f"{limits.low:g} and below {limits.high:g}"
            )
    alpha, length = config.attention.alpha, config.attention.reference_length
    least = 1.0 if weighting == "entmax" else 1.0 + 1e-3
    if alpha is not None and not least <= alpha <= 2:
        raise UserError(f"config.attention.alpha = {alpha}: must be from {least:g} to 2")
    if length is not None and not length > 1:
        raise UserError(f"config.attention.reference_length = {length}: must be above 1")


def _belong(chosen: Iterable[str], own: Iterable[str], group: str, owner: str) -> None:
    for key in chosen:
        if key not in own:
            options = ", ".join(sorted(own)) or "none"
            raise UserError(f"config.{group}.{key} is set, but {owner} has the options: {options}")


def _one_of(key: str, value: str, names: Iterable[str]) -> None:
    if value not in names:
        close = difflib.get_close_matches(str(value), list(names), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"config.{key} = {value!r} is not one of {', '.join(names)}{hint}")


def _get(config: Config, key: str) -> Any:
    return functools.reduce(operator.getitem, key.split("."), config)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
