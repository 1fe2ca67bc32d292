"""Plans an ablation on a slice: a line for each row, the hours of all points, and which is done
first, a point on each chip or one point after the other on all.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lm.config import Config, override
from lm.devices.slices import Slice, one_chip
from lm.errors import UserError
from lm.experiment.ablation.points import Point
from lm.experiment.plan.compile import DoesNotFit
from lm.experiment.plan.report import duration, size_of
from lm.experiment.plan.roofline import Plan, make_plan

_ROW = "  {:42} {:>14} {:>12} {:>12} {:>12}"
_ONE_DEVICE = {"mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1}


class PlannedRow(NamedTuple):
    """A row of an ablation: its label, how many points it has, and its plan where it fits."""

    label: str
    points: int
    plan: Plan | None

    @property
    def seconds(self) -> float:
        """The least that all its points take, one after the other; 0 where that is not known."""
        if self.plan is None or self.plan.seconds is None:
            return 0.0
        return self.points * self.plan.config.steps * self.plan.seconds


def ablation_lines(points: Sequence[Point], on: Slice) -> Iterator[str]:
    """The lines of an ablation's plan, each as its row is compiled.

    Raises:
      UserError: a row does not divide over the slice.
    """
    yield _ROW.format("row", "parameters", "memory", "step at least", "all at least")
    rows = []
    for label in dict.fromkeys(point.row for point in points):
        configs = [point.config for point in points if point.row == label]
        rows.append(_planned(label, configs, on))
        yield _row_line(rows[-1])
    for line in dict.fromkeys(line for row in rows if row.plan for line in row.plan.assumed):
        yield f"assumed: {line}"
    yield ""
    if not all(row.plan for row in rows):
        labels = ", ".join(row.label for row in rows if row.plan is None)
        raise UserError(f"{labels}: does not fit {on.name}; plan it alone to see what would")
    total = sum(row.seconds for row in rows)
    if total:
        chip_hours = total * on.chips / 3600
        yield (
            f"training of all {len(points)} points: at least {duration(total)}, "
            f"{chip_hours:.3g} chip-hours"
        )
        yield from _workers(points, rows, on)


def _planned(label: str, configs: Sequence[Config], on: Slice) -> PlannedRow:
    try:
        return PlannedRow(label, len(configs), make_plan(configs[0], on))
    except UserError as error:
        raise UserError(f"row {label}: {error}") from None
    except DoesNotFit:
        return PlannedRow(label, len(configs), None)


def _row_line(row: PlannedRow) -> str:
    if row.plan is None:
        return f"  {row.label:42} does not fit"
    known = row.plan.seconds is not None
    step, every = (duration(row.plan.seconds or 0.0), duration(row.seconds)) if known else ("", "")
    return _ROW.format(
        row.label, f"{row.plan.num_params[0]:,}", size_of(row.plan.bytes), step, every
    ).rstrip()


def _workers(points: Sequence[Point], rows: Sequence[PlannedRow], on: Slice) -> Iterator[str]:
    """The hours with a worker on each chip, by the first row's step on one, where it fits."""
    first = rows[0].plan
    if on.chips == 1 or first is None or not first.seconds:
        return
    single = one_chip(on)
    try:
        alone = make_plan(override(points[0].config, _ONE_DEVICE), single)
    except DoesNotFit:
        yield f"a point does not fit {single.name}: every point takes the mesh of {on.chips} chips"
        return
    if not alone.seconds:
        return
    # Points that are as long in the mesh as the first take as long as it on a chip.
    slower = alone.seconds / first.seconds
    rounds = math.ceil(len(points) / on.chips)
    workers = rounds * slower * sum(row.seconds for row in rows) / len(points)
    mesh = sum(row.seconds for row in rows)
    better = "workers beat the mesh" if workers < mesh else "the mesh beats workers"
    yield (
        f"{on.chips} workers of one chip: at least {duration(workers)} (a step "
        f"{duration(alone.seconds)}, in {rounds} rounds); one mesh of {on.chips} chips, point by "
        f"point: {duration(mesh)}; {better}"
    )
