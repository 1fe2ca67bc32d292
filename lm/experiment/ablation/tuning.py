"""Reads what an ablation's file says of tuning: TUNE, TUNE_SEEDS and TUNE_HALVING."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is tuned for each row before the table is trained; see `lm.experiment.protocol.tune`.

    Attributes:
      values: those to try for each dotted key.
      seeds: of the trials; none is a seed of the table.
      halving: of k trials the better half goes on in each round, until one is left; the last
        round, of two, trains half of the steps, each round before it half of the next one's.
    """

    values: Mapping[str, Sequence[Any]]
    seeds: Sequence[int] = (10_000,)
    halving: bool = False


def read_tuning(module: types.ModuleType, path: str) -> Tuning | None:
    """What a config file tunes; None: nothing.

    Raises:
      UserError: one of the names has another kind of value than `Tuning` says.
    """
    values = getattr(module, "TUNE", None)
    if values is None:
        return None
    if not isinstance(values, Mapping) or not all(
        isinstance(each, list | tuple) and each for each in values.values()
    ):
        raise UserError(
            f"{path}: TUNE = {values!r} is not a dictionary from dotted keys to lists of values; "
            "use {'optimizer.learning_rate': (1e-3, 2e-3, 4e-3)}"
        )
    seeds = integers("TUNE_SEEDS", getattr(module, "TUNE_SEEDS", Tuning.seeds), path)
    return Tuning(values, seeds, bool(getattr(module, "TUNE_HALVING", False)))


def integers(name: str, value: object, path: str) -> Sequence[int]:
    """A list of integers that a config file calls `name`; raises UserError for anything else."""
    whole = isinstance(value, list | tuple | range)
    if not (whole and all(isinstance(each, int) and not isinstance(each, bool) for each in value)):
        raise UserError(f"{path}: {name} = {value!r} is not a list of integers; use (0, 1, 2)")
    return value
