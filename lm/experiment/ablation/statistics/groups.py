"""Groups the rows of an ablation by config keys; the first row of a group is its baseline."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm.config import flatten, to_dict
from lm.errors import UserError, nearest
from lm.experiment.point_list import Planned


def find_baselines(points: Sequence[Planned], keys: Sequence[str]) -> dict[str, str]:
    """The baseline of each row that is none: the first row with the same values of `keys`.

    Args:
      points: of all rows, in their order.
      keys: config keys, dotted or as their last parts, such as d_model for model.d_model.

    Raises:
      UserError: a key is unknown or could be one of several, or no row shares its values.
    """
    settings: dict[str, Mapping[str, Any]] = {}
    for point in points:
        settings[point.row] = {**_settings(point), **settings.get(point.row, {})}
    known = sorted({key for each in settings.values() for key in each})
    whole = [_complete(key, known) for key in keys]
    groups: dict[str, list[str]] = {}
    for row, each in settings.items():
        groups.setdefault(repr([each.get(key) for key in whole]), []).append(row)
    found = {row: rows[0] for rows in groups.values() for row in rows[1:]}
    if not found:
        raise UserError(f"--against={','.join(keys)}: no two rows agree in it; leave it out")
    return {row: found[row] for row in settings if row in found}


def _settings(point: Planned) -> dict[str, Any]:
    """The config of a point by dotted key, as far as it is known."""
    config, path = getattr(point, "config", None), point.workdir / "config.json"
    if config is not None:
        return flatten(to_dict(config))
    try:
        recorded = flatten(json.loads(path.read_text()))
    except (OSError, ValueError):
        recorded = {}
    return recorded | dict(point.overrides)


def _complete(key: str, known: Sequence[str]) -> str:
    """The dotted config key of which `key` is the last parts."""
    ends = [each for each in known if f".{each}".endswith(f".{key}")]
    if key in known:
        return key
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UserError(f"--against={key} could be {' or '.join(ends)}; give one of them")
    raise UserError(f"--against={key} is not a config key{nearest(key, known)}")
