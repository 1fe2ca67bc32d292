"""Puts the rows of several folders side by side: of ablations, or of single runs."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from lm.errors import UserError
from lm.experiment.ablation.report.recorded import Ablated, read_ablation
from lm.experiment.point_list import ListedPoint, Source
from lm.experiment.primary_metric import PrimaryMetric, primary_metric


def join_ablations(paths: Sequence[epath.Path]) -> Ablated:
    """The points of all folders as those of one ablation, whose baseline is the first row of the
    first folder. Rows are named FOLDER/ROW, and the only row of a folder as that, with as much of
    its path as tells the folders apart.

    The table compares within seeds, and refuses points on other data.

    Raises:
      UserError: fewer than two folders, one given twice, or one whose runs have another primary
        metric than the first's.
    """
    if len(paths) < 2:
        raise UserError("compare needs two workdirs or more: run.py compare runs/a runs/b")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice} is given twice; give each workdir once")
    found = [read_ablation(path) for path in paths]
    metrics = [_metric(each) for each in found]
    for path, metric in zip(paths, metrics, strict=True):
        if metric != metrics[0]:
            raise UserError(
                f"{path} is judged by {metric.name} and {paths[0]} by {metrics[0].name}; compare "
                "runs of one objective or task"
            )
    points: list[ListedPoint] = []
    for name, each in zip(_names(paths), found, strict=True):
        single = len({point.row for point in each.points}) == 1
        for point in each.points:
            row = name if single else f"{name}/{point.row}"
            points.append(ListedPoint(row, point.seed, point.workdir, point.overrides))
    source = Source(metrics=found[0].source.metrics)
    return dataclasses.replace(found[0], points=points, source=source, left_out=())


def _metric(ablated: Ablated) -> PrimaryMetric:
    return primary_metric(ablated.config, ablated.source.metrics[0])


def _names(paths: Sequence[epath.Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
