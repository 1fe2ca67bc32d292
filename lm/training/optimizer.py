"""Builds the optimizer and the learning-rate schedule of a config as an Optax chain."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from lm.config import Config
from lm.training.layerwise_lr import layer_decay, unfreezing
from lm.training.mixed_precision import with_float32_state
from lm.training.pruning import SCORES, pruning, sparsity_schedule


def schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate by updates made: a linear warm-up, then the named shape, over `steps` updates.

    Update n, the first being 1, has the rate of n - 1: the peak comes at `warmup`, and the last
    rate at steps - 1.
    """
    after, warmup = SCHEDULES[config.schedule.name](config, steps), config.schedule.warmup_steps
    if not warmup:
        return after
    rise = optax.linear_schedule(0.0, config.optimizer.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then the named optimizer with its schedule and decay mask; around
    both, what treats layers unlike one another, and what prunes. All of it in float32, whatever
    the type of the parameters.
    """
    settings, layers = config.optimizer, config.model.num_layers
    tx = OPTIMIZERS[settings.name](settings, schedule(config, steps))
    if settings.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(settings.clip_norm), tx)
    if settings.layerwise_lr_decay != 1.0:
        tx = layer_decay(tx, settings.layerwise_lr_decay, layers)
    if config.schedule.unfreeze_every:
        tx = unfreezing(tx, config.schedule.unfreeze_every, layers)
    if config.regularization.sparsity:
        score = SCORES[config.regularization.pruning_criterion]
        tx = pruning(tx, sparsity_schedule(config.regularization, steps), score)
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


def _falling(config: Config, steps: int) -> int:
    """How many updates come after that at the peak; 1 where there is none."""
    return max(steps - 1 - config.schedule.warmup_steps, 1)


def _cosine(config: Config, steps: int) -> optax.Schedule:
    """Half a cosine from the peak to the final share of it."""
    peak, final = config.optimizer.learning_rate, config.schedule.final_lr_ratio
    return optax.cosine_decay_schedule(peak, _falling(config, steps), final)


def _linear(config: Config, steps: int) -> optax.Schedule:
    """A straight line from the peak to the final share of it."""
    peak = config.optimizer.learning_rate
    end = peak * config.schedule.final_lr_ratio
    return optax.linear_schedule(peak, end, _falling(config, steps))


def _rsqrt(config: Config, steps: int) -> optax.Schedule:
    """Peak * sqrt(warmup / step) after the warm-up (1706.03762); the run may be prolonged."""
    del steps
    warmup, peak = max(config.schedule.warmup_steps, 1), config.optimizer.learning_rate
    return lambda count: peak * jax.lax.rsqrt(1.0 + count / warmup)


def _constant(config: Config, steps: int) -> optax.Schedule:
    del steps
    return optax.constant_schedule(config.optimizer.learning_rate)


def _warmup_stable_decay(config: Config, steps: int) -> optax.Schedule:
    """Constant, then a linear fall over the last share of the steps at most (2404.06395)."""
    peak, room = config.optimizer.learning_rate, _falling(config, steps)
    falling = min(math.ceil(steps * config.schedule.decay_fraction), room)
    end = peak * config.schedule.final_lr_ratio
    return optax.linear_schedule(peak, end, falling, transition_begin=room - falling)


def _adamw(settings: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    b1, b2, eps, weight_decay = settings.b1, settings.b2, settings.eps, settings.weight_decay
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decayed)


def _sgd(settings: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(settings.weight_decay, decayed)
    return optax.chain(decay, optax.sgd(rate, momentum=settings.b1))


def _adafactor(settings: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    """Second moments as row and column means (1804.04235), with the schedule's learning rate."""
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


def _lion(settings: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(
        rate, b1=settings.b1, b2=settings.b2, weight_decay=settings.weight_decay, mask=decayed
    )


def _muon(settings: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    """Orthogonalised momentum for the blocks' kernels (Jordan et al. 2024), `_adamw` for the rest.

    Its updates have the root mean square 0.2 of AdamW's (Moonlight, 2502.16982), so that both share
    one learning rate; and both decay what AdamW alone would (`decayed`).
    """
    matrices = optax.contrib.muon(
        rate,
        beta=settings.b1,
        weight_decay=settings.weight_decay,
        weight_decay_mask=decayed,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_matrices,
    )
    return optax.partition({"muon": matrices, "adamw": _adamw(settings, rate)}, _labels)


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
SCHEDULES: dict[str, Callable[[Config, int], optax.Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "rsqrt": _rsqrt,
    "constant": _constant,
    "warmup_stable_decay": _warmup_stable_decay,
}

OPTIMIZERS: dict[str, Callable[[Config, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}
