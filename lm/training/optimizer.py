"""Builds the optimizer and the learning-rate schedule of a config as an Optax chain."""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import optax

from lm.config import BELOW_ONE, SMALLEST, Key
from lm.training.layerwise_lr import layer_decay, unfreezing
from lm.training.mixed_precision import with_float32_state
from lm.training.pruning import SCORES, Sparsity, pruning

Steps = Annotated[int, Key("steps", at_least=1)]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate by updates, of which there are `steps`; its peak is `learning_rate`."""

    name: "ScheduleName"
    steps: Steps
    learning_rate: Annotated[float, Key("optimizer.learning_rate", at_least=0)]
    warmup_steps: Annotated[int, Key("schedule.warmup_steps", at_least=0)]
    final_lr_ratio: Annotated[float, Key("schedule.final_lr_ratio", at_least=0)]
    decay_fraction: Annotated[float, Key("schedule.decay_fraction", at_least=0, below=1)]
    unfreeze_every: Annotated[int, Key("schedule.unfreeze_every", at_least=0)]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates; `sparsity` is None where nothing is pruned."""

    name: "OptimizerName"
    schedule: ScheduleConfig
    weight_decay: Annotated[float, Key("optimizer.weight_decay", at_least=0)]
    b1: Annotated[float, Key("optimizer.b1", at_least=0, below=BELOW_ONE)]
    b2: Annotated[float, Key("optimizer.b2", at_least=0, below=BELOW_ONE)]
    eps: Annotated[float, Key("optimizer.eps", at_least=SMALLEST)]
    clip_norm: Annotated[float, Key("optimizer.clip_norm", at_least=0)]
    layerwise_lr_decay: Annotated[float, Key("optimizer.layerwise_lr_decay", above=0)]
    ema_decay: Annotated[float, Key("optimizer.ema_decay", at_least=0, below=BELOW_ONE)]
    num_layers: Annotated[int, Key("model.num_layers")]
    sparsity: Sparsity | None
    pruning_criterion: Annotated[str, Key("regularization.pruning_criterion", one_of=SCORES)]


def schedule(config: ScheduleConfig) -> optax.Schedule:
    """Learning rate by updates made: a linear warm-up, then the named shape.

    Update n, the first being 1, has the rate of n - 1: the peak comes at `warmup_steps`, and the
    last rate at steps - 1.
    """
    after, warmup = SCHEDULES[config.name](config), config.warmup_steps
    if not warmup:
        return after
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then the named optimizer with its schedule and decay mask; around
    both, what treats layers unlike one another, and what prunes. All of it in float32, whatever
    the type of the parameters.
    """
    tx = OPTIMIZERS[config.name](config, schedule(config.schedule))
    if config.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    if config.layerwise_lr_decay != 1.0:
        tx = layer_decay(tx, config.layerwise_lr_decay, config.num_layers)
    if config.schedule.unfreeze_every:
        tx = unfreezing(tx, config.schedule.unfreeze_every, config.num_layers)
    if config.sparsity is not None:
        tx = pruning(tx, config.sparsity, SCORES[config.pruning_criterion])
    return with_float32_state(tx)


def decayed(params: optax.Params) -> Any:
    """Which parameters weight decay pulls on: kernels and word tables, by their names.

    Norms, biases, positions and the softmax's own learned parameters are left alone. Names, not
    numbers of axes, decide, so that a scan over layers changes nothing.
    """
    names = ("kernel", "embedding", "table")
    ends = ("_kernel", "_table")

    def decays(path: tuple[Any, ...], _: object) -> bool:
        return path[-1].key in names or path[-1].key.endswith(ends)

    return jax.tree_util.tree_map_with_path(decays, params)


def _falling(config: ScheduleConfig) -> int:
    """How many updates come after that at the peak; 1 where there is none."""
    return max(config.steps - 1 - config.warmup_steps, 1)


def _cosine(config: ScheduleConfig) -> optax.Schedule:
    """Half a cosine from the peak to the final share of it."""
    peak, final = config.learning_rate, config.final_lr_ratio
    return optax.cosine_decay_schedule(peak, _falling(config), final)


def _linear(config: ScheduleConfig) -> optax.Schedule:
    """A straight line from the peak to the final share of it."""
    peak, end = config.learning_rate, config.learning_rate * config.final_lr_ratio
    return optax.linear_schedule(peak, end, _falling(config))


def _rsqrt(config: ScheduleConfig) -> optax.Schedule:
    """Peak * sqrt(warmup / step) after the warm-up (1706.03762); the run may be prolonged."""
    warmup, peak = max(config.warmup_steps, 1), config.learning_rate
    return lambda count: peak * jax.lax.rsqrt(1.0 + count / warmup)


def _constant(config: ScheduleConfig) -> optax.Schedule:
    return optax.constant_schedule(config.learning_rate)


def _warmup_stable_decay(config: ScheduleConfig) -> optax.Schedule:
    """Constant, then a linear fall over the last share of the steps at most (2404.06395)."""
    peak, room = config.learning_rate, _falling(config)
    falling = min(math.ceil(config.steps * config.decay_fraction), room)
    end = peak * config.final_lr_ratio
    return optax.linear_schedule(peak, end, falling, transition_begin=room - falling)


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    b1, b2, eps, weight_decay = config.b1, config.b2, config.eps, config.weight_decay
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decayed)


def _sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(config.weight_decay, decayed)
    return optax.chain(decay, optax.sgd(rate, momentum=config.b1))


def _adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Second moments as row and column means (1804.04235), with the schedule's learning rate."""
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


def _lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(
        rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decayed
    )


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Orthogonalised momentum for the blocks' kernels (Jordan et al. 2024), `_adamw` for the rest.

    Its updates have the root mean square 0.2 of AdamW's (Moonlight, 2502.16982), so that both share
    one learning rate; and both decay what AdamW alone would (`decayed`).
    """
    matrices = optax.contrib.muon(
        rate,
        beta=config.b1,
        weight_decay=config.weight_decay,
        weight_decay_mask=decayed,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_matrices,
    )
    return optax.partition({"muon": matrices, "adamw": _adamw(config, rate)}, _labels)


def _labels(params: optax.Params) -> Any:
    """The optimizer of each parameter: Muon for the kernels of blocks, AdamW for all else."""

    def label(path: tuple[Any, ...], _: object) -> str:
        inside = path[0].key in ("stack", "encoder") and path[-1].key == "kernel"
        return "muon" if inside else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def _matrices(params: optax.Params) -> Any:
    """Which axes are a matrix's, [.., in, out], whatever axes a scan over layers put before."""
    numbers = optax.contrib.MuonDimensionNumbers
    return jax.tree.map(lambda leaf: numbers(leaf.ndim - 2, leaf.ndim - 1), params)


# What follows the warm-up.
SCHEDULES: dict[str, Callable[[ScheduleConfig], optax.Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "rsqrt": _rsqrt,
    "constant": _constant,
    "warmup_stable_decay": _warmup_stable_decay,
}
ScheduleName = Annotated[str, Key("schedule.name", one_of=SCHEDULES)]

OPTIMIZERS: dict[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}
OptimizerName = Annotated[str, Key("optimizer.name", one_of=OPTIMIZERS)]
