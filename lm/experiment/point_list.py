"""The list of an ablation's points in its folder, points.json: which runs are planned, of which
rows and seeds, and the command that planned them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from etils import epath

from lm.data.bucket import make_folder
from lm.data.files import parse_json, to_json, write_text
from lm.errors import UserError

_FILE = "points.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the points of an ablation come from.

    Attributes:
      config: its FILE[:ARG]; empty where it is unknown.
      flags: of the command line, those that choose its points or change their configs.
      metrics: a table for each; None: the primary metric of the config.
      description: the docstring of the config's file.
      protocol: "screen" where rows are ranked and not judged.
      against: config keys that group rows; the first row of each group is its baseline.
      matched: the quantity in which rows were made equal, such as "flops"; empty: none.
      notes: what else is to be said of the points, such as how they were tuned.
    """

    config: str = ""
    flags: tuple[str, ...] = ()
    metrics: tuple[str | None, ...] = (None,)
    description: str = ""
    protocol: Literal["confirm", "screen"] = "confirm"
    against: tuple[str, ...] = ()
    matched: str = ""
    notes: tuple[str, ...] = ()


class Planned(Protocol):
    """What a table needs to know of a point, whether or not its config is at hand."""

    @property
    def row(self) -> str:
        """The label of its variant."""
        ...

    @property
    def seed(self) -> int:
        """Of parameters, batches and dropout."""
        ...

    @property
    def workdir(self) -> epath.Path:
        """Its folder."""
        ...

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The dotted config keys that its row sets."""
        ...


@dataclasses.dataclass(frozen=True)
class ListedPoint:
    """A point as a folder's list names it; see `Planned`."""

    row: str
    seed: int
    workdir: epath.Path
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PointList:
    """The points of an ablation, row by row, and where they come from."""

    points: tuple[ListedPoint, ...]
    source: Source


def record_points(
    folder: epath.Path, points: Sequence[Planned], source: Source | None = None
) -> None:
    """Writes the points and their source, unless they are there already; makes the folder."""
    make_folder(folder)
    listed = [
        {
            "folder": point.workdir.name,
            "row": point.row,
            "seed": point.seed,
            "overrides": dict(point.overrides),
        }
        for point in points
    ]
    text = to_json({**dataclasses.asdict(source or Source()), "points": listed}, indent=2) + "\n"
    path = folder / _FILE
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def read_point_list(folder: epath.Path) -> PointList | None:
    """The list of a folder; None where it has none, or a damaged one, or one of before rows were
    recorded.
    """
    found = _content(folder)
    try:
        points = tuple(
            ListedPoint(each["row"], each["seed"], folder / each["folder"], each["overrides"])
            for each in found["points"]
        )
        source = Source(
            config=found["config"],
            flags=tuple(found["flags"]),
            metrics=tuple(found["metrics"]),
            description=found["description"],
            protocol="screen" if found["protocol"] == "screen" else "confirm",
            against=tuple(found.get("against", ())),
            matched=str(found.get("matched", "")),
            notes=tuple(found["notes"]),
        )
    except (KeyError, TypeError):
        return None
    return PointList(points, source) if points else None


def recorded_points(folder: epath.Path) -> list[str]:
    """The names of the points' folders; [] where none are recorded, or their file is damaged."""
    found = _content(folder).get("points")
    listed = found if isinstance(found, list) else []
    names = [each.get("folder") if isinstance(each, dict) else each for each in listed]
    return [name for name in names if isinstance(name, str)]


def _content(folder: epath.Path) -> dict[str, Any]:
    path = folder / _FILE
    try:
        return parse_json(path.read_bytes(), path) if path.exists() else {}
    except UserError:
        return {}
