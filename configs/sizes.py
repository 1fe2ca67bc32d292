"""Shared by the configs of several objectives: the choice of a size, and settings of :tiny."""

from collections.abc import Callable, Mapping


def pick(arg: str | None, sizes: Mapping[str, Callable]) -> Callable:
    """The size after the colon of --config; None is the first."""
    if not arg:
        return next(iter(sizes.values()))
    if arg not in sizes:
        raise ValueError(f"it has {', '.join(sizes)}, not {arg!r}")
    return sizes[arg]


def short(config) -> None:
    """A few hundred steps learn little from the usual small weights and learning rate."""
    config.model.position_embedding = "rotary"
    config.model.init_std = 0.08
    config.optimizer.learning_rate = 4e-3


def train_for(config, steps: int) -> None:
    """A number of steps, a tenth of them of warmup, with an evaluation at each quarter."""
    config.steps = steps
    config.schedule.warmup_steps = steps // 10
    config.evaluation.every = steps // 4


def spread(config) -> None:
    """Parameters in parts over all devices: for models that one cannot hold."""
    config.mesh.fsdp = -1
    config.mesh.data = 1
