"""Reads an ablation, or a single run, from its folder alone: its points, and the config by which
their primary metric is chosen. Nothing is trained, and no config file is needed.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from configs import default
from lm.checkpoints.identity import identity
from lm.checkpoints.run_files import recorded_config
from lm.config import Config
from lm.errors import UserError
from lm.experiment.ablation.points import row_label
from lm.experiment.point_list import ListedPoint, Planned, Source, read_point_list, recorded_points

# A row of so many varied keys or fewer is named by all of them, else by those that it changes.
_NAMED_WHOLE = 3


@dataclasses.dataclass(frozen=True)
class Ablated:
    """An ablation whose points were planned and are trained at least in part.

    Attributes:
      points: row by row.
      source: where they come from.
      config: of one of them, for the metric and its direction.
      left_out: runs of the folder that are no points of it, such as those of an earlier sweep.
    """

    points: Sequence[Planned]
    source: Source
    config: Config
    left_out: tuple[str, ...] = ()


def read_ablation(folder: epath.PathLike) -> Ablated:
    """The ablation or the run in a folder.

    The points are those of points.json. In a folder of an older sweep, whose list has no rows, they
    are its runs, and a row is named by the config keys in which it differs from others; the row
    from which others differ least is the first. A single run is a row named as its folder.

    Raises:
      UserError: the folder holds no run, or none that has begun.
    """
    folder = epath.Path(folder)
    if (folder / "config.json").exists():
        config = read_config(folder)
        return Ablated([ListedPoint(folder.name, config.seed, folder)], Source(), config)
    listed = read_point_list(folder) if folder.is_dir() else None
    runs = {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    begun = {name: path for name, path in runs.items() if (path / "config.json").exists()}
    if not begun:
        what = "is empty or holds no run" if folder.exists() else "does not exist"
        what = "has planned runs, and none has begun" if listed else what
        raise UserError(f"{folder} {what}; give the --workdir of a train, sweep or table command")
    if listed is None:
        planned = [name for name in recorded_points(folder) if name in begun]
        configs = {name: read_config(begun[name]) for name in planned or begun}
        points = _label(configs, folder, planned[0] if planned else None)
        return Ablated(points, Source(), configs[points[0].workdir.name])
    names = {point.workdir.name for point in listed.points}
    first = next((name for name in begun if name in names), None)
    if first is None:
        raise UserError(f"{folder}: none of the runs of its points.json has begun")
    left_out = tuple(name for name in begun if name not in names)
    return Ablated(listed.points, listed.source, read_config(begun[first]), left_out)


def read_config(folder: epath.Path) -> Config:
    """The config of a run, of whatever version of this code; see `recorded_config`."""
    return recorded_config(folder / "config.json", strict=False)


def varied_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys of flat configs that have more than one value; not the seed."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [k for k in keys if k != "seed" and len({repr(c.get(k)) for c in configs}) > 1]


def _label(
    configs: Mapping[str, Config], folder: epath.Path, first: str | None
) -> list[ListedPoint]:
    """The runs as points of rows, named by what differs between their configs; the row of the run
    `first` is the baseline.
    """
    flat = {name: identity(config) for name, config in configs.items()}
    keys, usual = varied_keys(list(flat.values())), identity(default.get_config())
    rows = {name: tuple(repr(config.get(key)) for key in keys) for name, config in flat.items()}
    most = [Counter(values).most_common(1)[0][0] for values in zip(*rows.values(), strict=True)]

    def distance(name: str) -> tuple[int, int]:
        """From what most rows have, and from the defaults."""
        unlike = [sum(a != b for a, b in zip(rows[name], most, strict=True))]
        unlike += [sum(flat[name].get(key) != usual.get(key) for key in keys)]
        return unlike[0], unlike[1]

    base = first or min(rows, key=distance)
    points = []
    for name in sorted(rows, key=lambda name: rows[name] != rows[base]):
        sets = {key: flat[name].get(key) for key in keys}
        if len(keys) > _NAMED_WHOLE:
            sets = {k: v for k, v in sets.items() if repr(v) != repr(flat[base].get(k))}
        label = row_label(sets, keys)
        points.append(ListedPoint(label, flat[name]["seed"], folder / name, sets))
    labels = list(dict.fromkeys(point.row for point in points))
    return sorted(points, key=lambda point: (labels.index(point.row), point.seed))
