"""Finds the folders that hold the runs of an ablation's points already."""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lm.checkpoints.identity import differences
from lm.checkpoints.run_files import recorded_config
from lm.devices.hosts import from_main
from lm.errors import UserError, counted
from lm.experiment.ablation.points import Point, start_of_name

_NAMED = 3  # points in a line that tells of many


class _Similar(NamedTuple):
    """A folder of the same row and seed: its name, and what makes it another point's; {}: nothing
    but how an older version of this code has named it.
    """

    name: str
    changed: Mapping[str, tuple[Any, Any]]


def find_folders(points: Sequence[Point]) -> list[Point]:
    """The points, with the folders in which they are already.

    Those are told by the seed and the hash at their end, whatever the label of the row before; or
    they are of the same row and seed, and hold the same config by the meaning of its keys.
    """
    folder = points[0].workdir.parent
    names = from_main(lambda: _found_names(points))
    return [
        dataclasses.replace(point, workdir=folder / name)
        for point, name in zip(points, names, strict=True)
    ]


def trained_otherwise(points: Sequence[Point]) -> list[str]:
    """A line for each set of keys by which points that have no folder differ from runs of the same
    row and seed that are there.
    """
    return from_main(lambda: _differing(points))


def _found_names(points: Sequence[Point]) -> list[str]:
    names, found = _names_beside(points[0]), []
    for point in points:
        own = point.workdir.name
        ending = own[own.rindex("-seed") :]
        alike = [name for name in names if name.endswith(ending)]
        if not alike:
            alike = [each.name for each in _similar(point, names) if not each.changed]
        found.append(own if own in alike or not alike else alike[0])
    return found


def _differing(points: Sequence[Point]) -> list[str]:
    names, groups = _names_beside(points[0]), defaultdict(list)
    for point in points:
        if point.workdir.name not in names:
            others = [each for each in _similar(point, names) if each.changed]
            if nearest := min(others, key=lambda each: len(each.changed), default=None):
                text = ", ".join(
                    f"config.{key} = {now!r} instead of {before!r}"
                    for key, (before, now) in nearest.changed.items()
                )
                groups[text].append(f"{point.row} seed {point.seed}")
    return [
        f"trained anew, beside runs of the same row and seed, with {text}: {_shortened(labels)}"
        for text, labels in groups.items()
    ]


def _similar(point: Point, names: Iterable[str]) -> list[_Similar]:
    """The folders of a point's row and seed whose config can be read."""
    found = []
    for name in names:
        file = point.workdir.parent / name / "config.json"
        if name.startswith(start_of_name(point.row, point.seed)) and file.exists():
            with contextlib.suppress(UserError):  # of a version with other keys
                changed = differences(point.config, recorded_config(file), point.overrides.keys())
                found.append(_Similar(name, changed))
    return found


def _names_beside(point: Point) -> list[str]:
    """Of what is in the folder of a point's ablation."""
    folder = point.workdir.parent
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def _shortened(labels: Sequence[str]) -> str:
    if len(labels) <= _NAMED:
        return ", ".join(labels)
    return f"{', '.join(labels[:_NAMED])} and {counted(len(labels) - _NAMED, 'other')}"
