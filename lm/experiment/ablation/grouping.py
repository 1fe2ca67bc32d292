"""Groups the points of an ablation that are trained in one program: those of a row, whose configs
differ only in the seed.
"""

import contextlib
import json
from collections.abc import Sequence

from lm.config import to_dict
from lm.errors import UserError
from lm.experiment.ablation.points import Point
from lm.experiment.replicas import why_alone


def group_points(
    points: Sequence[Point], waiting: Sequence[Point], number: int
) -> list[list[Point]]:
    """All points in groups of at most `number`, in the order of the first of each; those that are
    not `waiting`, and those of rows that cannot be trained together, stand alone.

    Prints why, for each such row.
    """
    left = {point.workdir for point in waiting}
    found: list[list[Point]] = []
    growing: dict[str, list[Point]] = {}  # by all of the config but the seed
    limits: dict[str, int] = {}
    for point in points:
        group = [point]
        if number > 1 and point.workdir in left:
            row = json.dumps({**to_dict(point.config), "seed": None}, sort_keys=True)
            if row not in limits:
                limits[row] = _limit(point, number)
            if len(growing.get(row, ())) in range(1, limits[row]):
                growing[row].append(point)
                continue
            growing[row] = group
        found.append(group)
    return found


def _limit(point: Point, number: int) -> int:
    """How many points of this one's row are trained together, where `number` are asked for."""
    with contextlib.suppress(UserError):  # which fails each of them, in its turn
        if reason := why_alone(point.config):
            print(f"{point.row} is trained one seed at a time: {reason}", flush=True)
            return 1
    return number
