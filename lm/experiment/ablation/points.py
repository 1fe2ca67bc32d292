"""Reads an ablation from its config file and makes its points: rows x seeds, and folders."""

import dataclasses
import inspect
import itertools
import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from lm.checkpoints.identity import content_hash
from lm.checkpoints.resolve import resolve_init
from lm.config import Config, load, override, reading
from lm.errors import UserError
from lm.experiment.ablation.tuning import Tuning, integers, read_tuning
from lm.experiment.ablation.variation import UNVARIED, Variation
from lm.experiment.validate import check


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The ablation of a config file.

    Attributes:
      rows: dotted overrides, one dictionary for each row, the baseline first.
      seeds: the seeds with which each row is trained.
      metrics: a table for each; None: the primary metric of the config.
      tuning: what is tuned for each row; None: nothing.
      screen_seeds: the seeds of a screening; none is one of `seeds`.
      settings: what each row sets besides, which its label does not show; (): nothing.
      description: the docstring of the file.
      against: config keys that group rows, each with a baseline of its own; (): there is one.
    """

    rows: Sequence[Mapping[str, Any]]
    seeds: Sequence[int]
    metrics: Sequence[str | None] = (None,)
    tuning: Tuning | None = None
    screen_seeds: Sequence[int] = (20_000, 20_001, 20_002)
    settings: Sequence[Mapping[str, Any]] = ()
    description: str = ""
    against: Sequence[str] = ()

    @property
    def labels(self) -> list[str]:
        """The label of each row."""
        keys = {key for row in self.rows for key in row}
        return [row_label(row, keys) for row in self.rows]

    @property
    def whole_rows(self) -> list[Mapping[str, Any]]:
        """What each row sets, in its label or not."""
        return [{**row, **own} for row, own in zip(self.rows, self._settings, strict=True)]

    def with_settings(self, settings: Sequence[Mapping[str, Any]]) -> "Ablation":
        """The same with further settings for each row."""
        merged = [{**old, **new} for old, new in zip(self._settings, settings, strict=True)]
        return dataclasses.replace(self, settings=merged)

    def only(self, rows: Sequence[int]) -> "Ablation":
        """The same with the rows of these indices."""
        kept = [self.rows[index] for index in rows]
        return dataclasses.replace(self, rows=kept, settings=[self._settings[i] for i in rows])

    @property
    def _settings(self) -> Sequence[Mapping[str, Any]]:
        return self.settings or [{}] * len(self.rows)


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of an ablation.

    Attributes:
      row: the label of its variant.
      seed: of parameters, batches and dropout.
      config: its whole config.
      workdir: its folder; see `folder_name`.
      overrides: what its row sets, by dotted key.
    """

    row: str
    seed: int
    config: Config
    workdir: epath.Path
    overrides: Mapping[str, Any]


def load_ablation(
    path: str, arg: str | None = None, variation: Variation = UNVARIED, given: Iterable[str] = ()
) -> Ablation:
    """The ablation of a config file, with what the command line varies in it. A file without
    sweep() has one row, and without SEEDS the seeds from 0.

    SEEDS, METRIC, ALSO, AGAINST, TUNE, TUNE_SEEDS, TUNE_HALVING and SCREEN_SEEDS of the file are
    what `Ablation` and `Tuning` say.

    Raises:
      UserError: where the file has no ablation and the command line gives none, or a part of it,
        such as METRIC, is of another kind than `Ablation` says; where a dotted key that was `given`
        is varied; as `vary_rows` and `draw_rows`.
    """
    module = load(path)
    if not (hasattr(module, "sweep") or variation.is_given):
        raise UserError(
            f"{path} has no sweep(); vary keys by --vary=KEY=A,B or --draw, give --seeds=N, or use "
            "an ablation such as configs/attention.py"
        )
    metric, also = getattr(module, "METRIC", None), getattr(module, "ALSO", ())
    if not (metric is None or isinstance(metric, str)):
        remedy = "is not the name of a metric; use 'eval/accuracy'"
        raise UserError(f"{path}: METRIC = {metric!r} {remedy}")
    if not (isinstance(also, list | tuple) and all(isinstance(name, str) for name in also)):
        raise UserError(f"{path}: ALSO = {also!r} is not a list of metrics; use ('eval/accuracy',)")
    own = _rows(module, path, arg) if hasattr(module, "sweep") else [{}]
    rows = variation.rows(own)
    for key in sorted({key for row in rows for key in row} | {"seed"}):
        if key in given:
            where = f"sweep() in {path}" if any(key in row for row in own) else "--vary or --draw"
            where = "--seeds" if key == "seed" else where
            raise UserError(f"--config.{key} is what the ablation varies; change {where}")
    seeds = _seeds(module, path, variation.seeds)
    return Ablation(
        rows,
        seeds,
        (metric, *also),
        variation.tuning(read_tuning(module, path)),
        integers("SCREEN_SEEDS", getattr(module, "SCREEN_SEEDS", Ablation.screen_seeds), path),
        description=inspect.cleandoc(module.__doc__ or ""),
        against=_against(module, path),
    )


def _rows(module: types.ModuleType, path: str, arg: str | None) -> list[Mapping[str, Any]]:
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
                f"{path}: sweep() yields {row!r}, which is not a dictionary of overrides such "
                "as {'attention.weighting': 'softmax'}"
            )
    return rows


def _against(module: types.ModuleType, path: str) -> Sequence[str]:
    keys = getattr(module, "AGAINST", ())
    keys = (keys,) if isinstance(keys, str) else keys
    if not (isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys)):
        raise UserError(
            f"{path}: AGAINST = {keys!r} is not a list of config keys; use ('model.d_model',)"
        )
    return keys


def _seeds(module: types.ModuleType, path: str, first: int | None) -> Sequence[int]:
    if not hasattr(module, "SEEDS"):
        return range(first or 1)
    seeds = integers("SEEDS", module.SEEDS, path)
    if (first or 0) > len(seeds):
        raise UserError(f"--seeds={first} is more than the SEEDS of {path}: {seeds}")
    return seeds[:first]


def make_points(config: Config, ablation: Ablation, workdir: epath.PathLike) -> list[Point]:
    """All points, seed by seed, so that what is finished first is paired; the config of each is
    checked.

    Raises:
      UserError: where a row sets an unknown config key or is invalid, or two rows are the same.
    """
    found: list[Point] = []
    rows: dict[str, str] = {}  # by the end of the folder's name
    seen: dict[tuple[str, int], str] = {}
    labelled = [*zip(ablation.labels, ablation.whole_rows, strict=True)]
    for seed, (row, overrides) in itertools.product(ablation.seeds, labelled):
        varied = override(config, {**overrides, "seed": seed})
        try:
            if {"init_from", "finetuning.adapter_from"} & overrides.keys():
                varied = resolve_init(varied, overrides)
            check(varied)
        except UserError as error:
            raise UserError(f"row {row}: {error}") from None
        name = folder_name(row, seed, varied, overrides.keys())
        if seen.get((row, seed)) == name:
            raise UserError(f"the ablation has {row} with seed {seed} twice; remove one")
        if (row, seed) in seen:
            raise UserError(f"the ablation has two rows that are both called {row}; remove one")
        if other := rows.get(name.rpartition("-seed")[2]):
            raise UserError(f"the ablation has {other} and {row}, which are one config; remove one")
        seen[row, seed], rows[name.rpartition("-seed")[2]] = name, row
        found.append(Point(row, seed, varied, epath.Path(workdir) / name, overrides))
    if not found:
        raise UserError("sweep() and SEEDS give no point; give at least one row and one seed")
    return found


def folder_name(row: str, seed: int, config: Config, own: Collection[str] = ()) -> str:
    """The name of a point's folder: the row, the seed and the hash of the config, in which the keys
    count that the row sets, its `own`.
    """
    return f"{start_of_name(row, seed)}{content_hash(config, own)}"


def start_of_name(row: str, seed: int) -> str:
    """What the names of all folders of a row and seed begin with."""
    return f"{re.sub(r'[^A-Za-z0-9.=,+-]+', '-', row)}-seed{seed}-"


def row_label(overrides: Mapping[str, Any], keys: Collection[str] = ()) -> str:
    """{"attention.weighting": "softcap", "attention.cap": 20.0} to "weighting=softcap,cap=20.0".

    A key is shortened to its last part, or to as many parts as tell it apart from the other `keys`,
    those of all rows. The row without overrides is "default".
    """
    named = (f"{_short(key, {*keys, *overrides})}={value}" for key, value in overrides.items())
    return ",".join(named) or "default"


def _short(key: str, keys: Collection[str]) -> str:
    parts = key.split(".")
    ends = (".".join(parts[-number:]) for number in range(1, len(parts)))
    alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return next(alone, key)
