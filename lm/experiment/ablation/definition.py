"""Reads an ablation from its config file: the rows that sweep() yields, the seeds, the metrics."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm.config import load, reading
from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What a config file says of its ablation.

    Attributes:
      rows: dotted overrides, one dictionary for each row, the baseline first.
      seeds: each row is trained once for each.
      metrics: a table for each; None: the metric by which runs of the config are judged.
    """

    rows: Sequence[Mapping[str, Any]]
    seeds: Sequence[int]
    metrics: Sequence[str | None]


def load_ablation(
    path: str, arg: str | None = None, seeds: int | None = None, given: Iterable[str] = ()
) -> Ablation:
    """The ablation of a config file, with the first `seeds` of its seeds; None takes all.

    Raises:
      UserError: where the file has no sweep(arg) or SEEDS, or one of them, METRIC or ALSO is of
        another kind than `Ablation` says; where it varies a dotted key that was `given`.
    """
    module = load(path)
    for name in ("sweep", "SEEDS"):
        if not hasattr(module, name):
            raise UserError(f"{path} has no {name}; use an ablation such as configs/attention.py")
    metric, also = getattr(module, "METRIC", None), getattr(module, "ALSO", ())
    if not (metric is None or isinstance(metric, str)):
        raise UserError(f"{path}: METRIC = {metric!r} is no name of a metric, 'eval/accuracy' say")
    if not (isinstance(also, list | tuple) and all(isinstance(name, str) for name in also)):
        raise UserError(f"{path}: ALSO = {also!r} is no list of metrics; write ('eval/accuracy',)")
    rows = _rows(module, path, arg)
    for key in sorted({key for row in rows for key in row} | {"seed"}):
        if key in given:
            raise UserError(f"--config.{key} is what the ablation varies; change sweep() in {path}")
    return Ablation(rows, _seeds(module, path, seeds), (metric, *also))


def _rows(module: Any, path: str, arg: str | None) -> list[Mapping[str, Any]]:
    with reading(path):
        found = module.sweep(arg)
        rows = None if found is None or isinstance(found, str | Mapping) else list(found)
    if rows is None:
        raise UserError(
            f"{path}: sweep() returns {found!r}; let it yield one dictionary of dotted overrides "
            "for each row"
        )
    for row in rows:
        if not (isinstance(row, Mapping) and all(isinstance(key, str) for key in row)):
            raise UserError(
                f"{path}: sweep() yields {row!r}, which is no dictionary of dotted overrides such "
                "as {'attention.weighting': 'softmax'}"
            )
    return rows


def _seeds(module: Any, path: str, first: int | None) -> Sequence[int]:
    seeds = module.SEEDS
    whole = isinstance(seeds, list | tuple | range)
    if not (whole and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)):
        raise UserError(f"{path}: SEEDS = {seeds!r} is no list of whole numbers; write (0, 1, 2)")
    if (first or 0) > len(seeds):
        raise UserError(f"--seeds={first} is more than the SEEDS of {path}: {seeds}")
    return seeds[:first]
