"""Tunes config keys for each row of an ablation, before its table is trained.

Every row gets the same trials, the grid of the values, on seeds that are not the table's: no row is
tuned longer than another, and what chooses the values is not what judges them.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from lm.checkpoints.run_files import read_result
from lm.config import Config, override
from lm.data.files import write_json
from lm.devices.hosts import from_main, is_main
from lm.errors import UserError
from lm.experiment.ablation.folders import find_folders
from lm.experiment.ablation.points import Ablation, Point, make_points, row_label
from lm.experiment.ablation.tuning import Tuning
from lm.experiment.primary_metric import primary_metric

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen for a row.

    Attributes:
      row: its label.
      settings: the trial with the best mean of the primary metric; of equal ones the first. Empty
        where none finished.
      scores: that mean for each trial, by its label; of a trial that failed, or that halving
        stopped, the last that it had, and None without any.
      edges: the numeric keys whose choice is the least or the greatest of at least two values.
    """

    row: str
    settings: dict[str, Any]
    scores: dict[str, float | None]
    edges: tuple[str, ...]


def check_tuning(tuning: Tuning, ablation: Ablation) -> None:
    """Raises UserError where an ablation cannot be tuned so."""
    if shared := sorted({*tuning.seeds} & {*ablation.seeds}):
        raise UserError(
            f"TUNE_SEEDS has {shared[0]}, which is a seed of the table; choose another, so that "
            "what chooses is not what judges"
        )
    for key, values in tuning.values.items():
        if not values:
            raise UserError(f"TUNE gives no value for {key}; give at least two")
        if any(key in row for row in ablation.rows):
            raise UserError(f"TUNE tunes {key}, which sweep() sets; leave it out in one of them")
    lengths = {"steps", "epochs", "schedule.warmup_steps"}
    varied = sorted(lengths & {*tuning.values, *(key for row in ablation.rows for key in row)})
    if tuning.halving and varied:
        raise UserError(
            f"TUNE_HALVING shortens runs, and {varied[0]} is varied; use TUNE_HALVING = False"
        )


def tune(
    config: Config,
    ablation: Ablation,
    tuning: Tuning,
    folder: epath.Path,
    train: Callable[[Sequence[Point]], object],
) -> list[Choice]:
    """Trains the trials of every row in `folder`/tune-1, tune-2, ..., a folder for each round, and
    writes the choices to `folder`/tuning.json.

    Args:
      config: around which the rows vary.
      ablation: its rows.
      tuning: what is tried.
      folder: of the ablation.
      train: trains the points that are not finished.

    Raises:
      UserError: see `check_tuning` and `make_points`.
    """
    check_tuning(tuning, ablation)
    rows = {label: row for label, row in zip(ablation.labels, ablation.whole_rows, strict=True)}
    left = {label: trials_of(tuning) for label in rows}
    scores: dict[str, dict[str, float]] = {label: {} for label in rows}
    for number, (kept, fraction) in enumerate(rounds(len(trials_of(tuning)), tuning.halving), 1):
        pairs = [(label, trial) for label in rows for trial in left[label]]
        round_of = Ablation(
            [{**rows[label], **trial} for label, trial in pairs],
            tuning.seeds,
            # Of each row's own length, which may be matched to the baseline's.
            settings=[_shortened(override(config, rows[label]), fraction) for label, _ in pairs],
        )
        points = find_folders(make_points(config, round_of, folder / f"tune-{number}"))
        train(points)
        found = from_main(lambda points=points: mean_scores(points, config, ablation.metrics[0]))
        for (label, trial), row in zip(pairs, round_of.labels, strict=True):
            scores[label][row_label(trial)] = found[row]
        for label, trials in left.items():
            better = sorted(trials, key=lambda trial, own=scores[label]: own[row_label(trial)])
            finished = [each for each in better if math.isfinite(scores[label][row_label(each)])]
            left[label] = finished[:kept]
    sign = 1 if primary_metric(config, ablation.metrics[0]).lower_is_better else -1
    choices = []
    for label, trials in left.items():
        best = trials[0] if trials else {}
        shown = {k: sign * v if math.isfinite(v) else None for k, v in scores[label].items()}
        choices.append(Choice(label, best, shown, tuple(_edges(best, tuning))))
    if is_main():
        write_json(folder / "tuning.json", {"choices": [*map(dataclasses.asdict, choices)]})
    return choices


def trials_of(tuning: Tuning) -> list[dict[str, Any]]:
    """The grid: every combination of the values."""
    grid = itertools.product(*tuning.values.values())
    return [dict(zip(tuning.values, each, strict=True)) for each in grid]


def rounds(trials: int, halving: bool) -> list[tuple[int, float]]:
    """Of each round, how many trials of a row go on, and which fraction of the steps it trains.

    >>> rounds(3, halving=True)
    [(2, 0.25), (1, 0.5)]
    """
    if not halving or trials < 2:
        return [(1, 1.0)]
    kept = [math.ceil(trials / 2)]
    while kept[-1] > 1:
        kept.append(math.ceil(kept[-1] / 2))
    return [(number, 0.5 ** (len(kept) - index)) for index, number in enumerate(kept)]


def _shortened(config: Config, fraction: float) -> Settings:
    """What trains a fraction of a config's steps or epochs, with its warm-up in proportion."""
    if fraction == 1:
        return {}
    warmup = {"schedule.warmup_steps": int(config.schedule.warmup_steps * fraction)}
    if config.epochs is not None:
        return warmup | {"epochs": config.epochs * fraction}
    return warmup | {"steps": max(1, round(config.steps * fraction))}


def mean_scores(points: Iterable[Point], config: Config, metric: str | None) -> dict[str, float]:
    """The mean of the metric by row, of which less is better; infinite where a seed failed.

    Args:
      points: that are finished or have failed.
      config: around which their rows vary.
      metric: its name; None: the primary one of the config.
    """
    values: dict[str, list[float]] = {}
    for point in points:
        result = read_result(point.workdir)
        value = math.inf
        if result is not None:
            chosen = primary_metric(config, metric, result)
            value = float(result[chosen.name]) * (1 if chosen.lower_is_better else -1)
        values.setdefault(point.row, []).append(value if math.isfinite(value) else math.inf)
    return {row: statistics.fmean(each) for row, each in values.items()}


def _edges(best: Settings, tuning: Tuning) -> Iterator[str]:
    for key, value in best.items():
        numbers = [each for each in tuning.values[key] if type(each) in (int, float)]  # no bool
        if len(numbers) > 1 and value in (min(numbers), max(numbers)):
            yield key


def describe(choices: Sequence[Choice], tuning: Tuning) -> list[str]:
    """The notes of a table whose rows were tuned."""
    tried = "; ".join(f"{key} in {', '.join(map(str, v))}" for key, v in tuning.values.items())
    number = len(trials_of(tuning))
    seeds = ", ".join(map(str, tuning.seeds))
    how = ", of which half went on after each round (successive halving)" * tuning.halving
    chosen = "; ".join(
        f"{each.row}: {row_label(each.settings)}" for each in choices if each.settings
    )
    notes = [
        f"Tuned: {tried}; {number} trials for each row with seed {seeds}{how}. Chosen: {chosen}."
    ]
    if edge := [each.row for each in choices if each.edges]:
        notes.append(
            "WARNING: at the edge of the grid, beyond which other values may be better: "
            f"{', '.join(edge)}."
        )
    if untuned := [each.row for each in choices if not each.settings]:
        notes.append(f"WARNING: untuned, since no trial finished: {', '.join(untuned)}.")
    return notes
