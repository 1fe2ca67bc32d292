"""Trains the rows of a recipe with one seed, as a sweep does, so that finished runs are kept."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from lm.checkpoints.run_files import read_result
from lm.config import Config
from lm.errors import UserError
from lm.experiment.ablation import Ablation, make_points, train_points


class Trained(NamedTuple):
    """A finished run: its folder, and the content of its result.json."""

    workdir: epath.Path
    result: Mapping[str, Any]


def train_rows(
    config: Config, rows: Sequence[Mapping[str, Any]], seed: int, folder: epath.Path
) -> list[Trained]:
    """Trains a config with the overrides of each row, or reads what is finished in the folder.

    Raises:
      UserError: where a row fails; its folder has the error.
    """
    points = make_points(config, Ablation(rows, (seed,)), folder)
    if failed := train_points(points, retry=True):
        raise UserError(f"{failed[0].row} seed {seed} failed; see {failed[0].workdir}/error.txt")
    results = [(point.workdir, read_result(point.workdir)) for point in points]
    return [Trained(workdir, result) for workdir, result in results if result is not None]


def final_percent(
    metric: str, config: Config, row: Mapping[str, Any], seed: int, folder: epath.Path
) -> float:
    """A metric at the end of one trained row, such as "eval/accuracy", in percent.

    Raises:
      UserError: see `train_rows`.
    """
    (run,) = train_rows(config, [row], seed, folder)
    return 100 * run.result[metric]
