"""Makes the rows of an ablation equal to the baseline in FLOPs, parameters, memory or time, by the
number of steps or by the width of the feed-forward layers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from lm.config import Config, override
from lm.data.files import parse_json
from lm.devices.hosts import from_main
from lm.errors import UserError
from lm.experiment.ablation.points import Ablation, row_label
from lm.experiment.plan.compile import compile_train_step
from lm.experiment.plan.describe import describe_program
from lm.finetuning import param_count
from lm.training.profiling.flops import flops_per_token

QUANTITIES = ("flops", "parameters", "memory", "time")

# Feed-forward layers are made wider or narrower by so many features.
_STRIDE = 8


class Match(NamedTuple):
    """How a row was made equal to the baseline.

    Attributes:
      row: its label.
      settings: what is set for that; empty for the baseline.
      amount: what the row has of the quantity.
      baseline: what the baseline has.
    """

    row: str
    settings: dict[str, Any]
    amount: float
    baseline: float


def match_rows(
    config: Config, ablation: Ablation, quantity: str, folder: epath.Path
) -> list[Match]:
    """Matches every row with the first.

    flops: of a run's training, as tables count them (three times the products of the forward pass):
      by config.steps, with the warm-up in proportion.
    time: of a run's steps, by config.steps likewise; what a step takes is read from `folder`/
      speed.json, where experiments/step_speed.py writes what it measured of all rows in turns.
    parameters: by config.model.mlp_dim, to the nearest multiple of 8.
    memory: bytes that a device needs for a training step, as its compiler says, by
      config.model.mlp_dim likewise.

    Raises:
      UserError: a row or the tuning sets the key that would be changed, or no width has the amount,
        or there is no measurement of a row's time.
    """
    if quantity not in QUANTITIES:
        raise UserError(f"--match={quantity} is unknown; use {', '.join(QUANTITIES)}")
    changed = ("steps", "epochs") if quantity in ("flops", "time") else ("model.mlp_dim",)
    tuned = ablation.tuning.values if ablation.tuning else ()
    keys = {key for row in ablation.rows for key in row} | {*tuned}
    if clash := sorted(keys & {*changed}):
        by = "is tuned" if clash[0] in tuned else "sweep() varies"
        raise UserError(f"--match={quantity} sets {clash[0]}, which {by}; leave out one")
    labels = ablation.labels
    configs = [override(config, row) for row in ablation.whole_rows]
    if quantity in ("flops", "time"):
        timed = quantity == "time"
        costs = from_main(lambda: _seconds(labels, folder)) if timed else [*map(_flops, configs)]
        rows = zip(configs, labels, costs, strict=True)
        return [_by_steps(*each, costs[0]) for each in rows]
    amount = _parameters if quantity == "parameters" else _memory
    whole = amount(configs[0])
    own = [_by_width(each, whole, amount) for each in configs[1:]]
    pairs = zip(labels[1:], own, strict=True)
    return [
        Match(labels[0], {}, whole, whole),
        *(Match(label, {"model.mlp_dim": width}, found, whole) for label, (width, found) in pairs),
    ]


def describe_match(matches: Sequence[Match], quantity: str) -> str:
    """The note of a table whose rows were matched."""
    worst = max(matches, key=lambda each: abs(each.amount / each.baseline - 1))
    own = (f"{each.row}: {row_label(each.settings)}" for each in matches if each.settings)
    return (
        f"Matched in {quantity} with {matches[0].row}, to {worst.amount / worst.baseline - 1:+.1%} "
        f"at most. {'; '.join(own)}."
    )


def _by_steps(config: Config, label: str, cost: float, baseline: float) -> Match:
    """The steps of a row's config that cost what config.steps cost the baseline, by the cost of a
    step of each.
    """
    factor = baseline / cost
    if config.epochs is not None:
        return Match(label, {"epochs": config.epochs * factor} if factor != 1 else {}, 1.0, 1.0)
    steps = max(1, round(config.steps * factor))
    settings: dict[str, Any] = {}
    if steps != config.steps:
        warmup = min(steps - 1, round(config.schedule.warmup_steps * factor))
        settings = {"steps": steps, "schedule.warmup_steps": warmup}
    return Match(label, settings, steps * cost, config.steps * baseline)


def _by_width(config: Config, whole: float, amount: Callable[[Config], float]) -> tuple[int, float]:
    """The width of feed-forward layers with which a config has nearest to `whole`, and what it has.

    The amount grows with the width; where it is a line, as parameters are, two steps find it.
    """

    def found(width: int) -> float:
        if width not in known:
            known[width] = amount(override(config, {"model.mlp_dim": width * _STRIDE}))
        return known[width]

    known: dict[int, float] = {}
    low, high = 1, 2 * max(1, (config.model.mlp_dim or 4 * config.model.d_model) // _STRIDE)
    while found(high) < whole:
        low, high = high, 2 * high
    if found(low) > whole:
        raise UserError(
            f"no config.model.mlp_dim makes a row equal to the baseline: with {low * _STRIDE} it "
            f"has {found(low):.4g}, the baseline {whole:.4g}; match another quantity"
        )
    while high - low > 1:
        share = (whole - found(low)) / (found(high) - found(low))
        share = share if len(known) % 2 else 0.5  # in turns, so that no curve is slow
        guess = min(high - 1, max(low + 1, round(low + share * (high - low))))
        low, high = (guess, high) if found(guess) <= whole else (low, guess)
    width = min((low, high), key=lambda each: abs(found(each) - whole))
    return width * _STRIDE, found(width)


def _flops(config: Config) -> float:
    """FLOPs of a training step."""
    program = describe_program(config, jax.devices()).program
    rows = program.objective.abstract_rows(config.batch_size)
    return flops_per_token(program) * math.prod(rows["segments"].shape)


def _parameters(config: Config) -> float:
    return float(param_count(describe_program(config, jax.devices()).program.abstract_params))


def _memory(config: Config) -> float:
    program = describe_program(config, jax.devices()).program
    return float(compile_train_step(program, config.batch_size).memory.total)


def _seconds(labels: Sequence[str], folder: epath.Path) -> list[float]:
    """Seconds of a step, row by row, as they were measured in turns."""
    path = folder / "speed.json"
    rows: Mapping[str, Any] = parse_json(path.read_bytes(), path) if path.exists() else {}
    found = []
    for label in labels:
        try:
            found.append(float(rows[label]["seconds"]))
            if not 0 < found[-1] < math.inf:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path} has no time of a step of {label}; measure all rows first, by "
                "experiments/step_speed.py"
            ) from None
    return found
