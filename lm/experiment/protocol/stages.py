"""The stages of an ablation: its rows are matched and tuned, and then all trained with the table's
seeds; or screened with a few seeds, and those that were best confirmed with fresh ones.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from etils import epath

from lm.checkpoints.run_files import read_result
from lm.config import Config
from lm.devices.hosts import from_main
from lm.errors import UserError, counted
from lm.experiment import failures
from lm.experiment.ablation.folders import find_folders
from lm.experiment.ablation.points import Ablation, Point, make_points
from lm.experiment.ablation.report.recorded import Ablated
from lm.experiment.ablation.statistics.groups import find_baselines
from lm.experiment.point_list import Source
from lm.experiment.protocol.match import describe_match, match_rows
from lm.experiment.protocol.tune import check_tuning, describe, mean_scores, tune

# Fewer seeds find only effects of more than a standard deviation of a difference.
_FEWEST_SEEDS = 10


@dataclasses.dataclass(frozen=True)
class How:
    """How an ablation is trained.

    Attributes:
      protocol: "all" trains every row with the table's seeds; "screen" with those of screening, in
        the folder screen; "confirm" the best rows of the screening with the table's seeds.
      shortlist: how many rows are confirmed, besides baselines.
      match: in which quantity rows are made equal to the baseline; None: in none.
    """

    protocol: str = "all"
    shortlist: int = 6
    match: str | None = None


class Trained(NamedTuple):
    """What was trained: the ablation, its points that failed, and the folder of its table."""

    ablated: Ablated
    failed: list[Point]
    folder: epath.Path


def train_ablation(
    config: Config,
    ablation: Ablation,
    workdir: epath.Path,
    how: How,
    train: Callable[..., list[Point]],
    source: Source | None = None,
) -> Trained:
    """Trains what is not finished of an ablation.

    Args:
      config, ablation, workdir: around which config, what varies, in which folder.
      how: the protocol.
      train: trains the points that are not finished, with the `source` of their list, and returns
        those that failed, such as `train_points`.
      source: which file and flags the ablation is of.

    Raises:
      UserError: where the config, a row or the protocol is impossible, or confirmed rows were not
        screened.
    """
    check_protocol(ablation, how)
    make_points(config, ablation, workdir)  # checks every row before any is trained
    notes = []
    if how.match:
        matches = match_rows(config, ablation, how.match, workdir)
        notes.append(describe_match(matches, how.match))
        ablation = ablation.with_settings([each.settings for each in matches])
    if ablation.tuning is not None:
        choices = tune(config, ablation, ablation.tuning, workdir, train)
        notes += describe(choices, ablation.tuning)
        ablation = ablation.with_settings([each.settings for each in choices])
    folder = workdir
    if how.protocol == "screen":
        folder = workdir / "screen"
        ablation = dataclasses.replace(ablation, seeds=ablation.screen_seeds)
    if how.protocol == "confirm":
        ablation = _shortlist(config, ablation, workdir / "screen", how.shortlist)
        notes.append(
            f"Confirmed: the {counted(how.shortlist, 'best row')} of a screening with other seeds "
            f"({', '.join(map(str, ablation.screen_seeds))}), and baselines."
        )
    points = find_folders(make_points(config, ablation, folder))
    source = dataclasses.replace(
        source or Source(),
        metrics=tuple(ablation.metrics),
        description=ablation.description,
        protocol="screen" if how.protocol == "screen" else "confirm",
        against=tuple(ablation.against),
        matched=how.match or "",
        notes=tuple(notes),
    )
    failed = train(points, source=source)
    return Trained(Ablated(points, source, config), failed, folder)


def check_protocol(ablation: Ablation, how: How) -> None:
    """Raises UserError where an ablation cannot be trained so."""
    if ablation.tuning is not None:
        check_tuning(ablation.tuning, ablation)
    if how.protocol == "all":
        return
    if shared := sorted({*ablation.screen_seeds} & {*ablation.seeds}):
        raise UserError(
            f"SCREEN_SEEDS has {shared[0]}, which is a seed of the table; choose another, so that "
            "rows are confirmed with fresh seeds"
        )
    if how.protocol == "confirm" and len(ablation.seeds) < _FEWEST_SEEDS:
        raise UserError(
            f"confirm trains at least {_FEWEST_SEEDS} seeds, and there are {len(ablation.seeds)}; "
            f"use SEEDS = range({_FEWEST_SEEDS}) and leave out --seeds"
        )


def _shortlist(config: Config, ablation: Ablation, screen: epath.Path, number: int) -> Ablation:
    """The ablation with the best rows of a screening, and the baselines of those, in its order."""
    screened = dataclasses.replace(ablation, seeds=ablation.screen_seeds)
    points = find_folders(make_points(config, screened, screen))
    means = from_main(lambda: _means(config, screened, points))
    labels = ablation.labels
    bases = dict.fromkeys(labels[1:], labels[0])
    if ablation.against:
        bases = find_baselines(points, ablation.against)
    finished = (label for label in bases if math.isfinite(means[label]))
    best = sorted(finished, key=means.__getitem__)[:number]
    chosen = {*best, *(bases[label] for label in best)}
    kept = [index for index, label in enumerate(labels) if label in chosen]
    return ablation.only(kept)


def _means(config: Config, screened: Ablation, points: Sequence[Point]) -> dict[str, float]:
    """See `mean_scores`; raises UserError where a point of a screening is neither finished nor has
    failed.
    """
    for point in points:
        if read_result(point.workdir) is None and failures.reason(point.workdir) is None:
            raise UserError(
                f"{point.workdir} is not finished; run --protocol=screen to its end first"
            )
    return mean_scores(points, config, screened.metrics[0])
