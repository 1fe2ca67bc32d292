"""The list of an ablation's points in its folder, by which one knows of those not begun yet."""

from collections.abc import Sequence

from etils import epath

from lm.data.files import parse_json, write_json
from lm.errors import UserError

_FILE = "points.json"


def record_points(folder: epath.Path, names: Sequence[str]) -> None:
    """Writes the names of the points' folders, unless they are there already."""
    if recorded_points(folder) != list(names):
        write_json(folder / _FILE, {"points": list(names)})


def recorded_points(folder: epath.Path) -> list[str]:
    """The names; [] where none are recorded, or their file is damaged."""
    path = folder / _FILE
    try:
        found = parse_json(path.read_text(), path).get("points") if path.exists() else None
    except UserError:
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
