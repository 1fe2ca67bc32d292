"""Reads what a step of training takes in each row, as experiments/step_speed.py has measured it."""

import dataclasses
from typing import Any

from etils import epath

from lm.data.files import parse_json
from lm.errors import UserError
from lm.experiment.ablation.statistics.rows import Table

_NOTE = (
    "Step time: of a training step to the baseline's, the median of steps in turns "
    "(experiments/step_speed.py)."
)


def with_speeds(table: Table, folder: epath.Path) -> Table:
    """The table with the time of a step of each row to that of its baseline, where the folder's
    speed.json has both.
    """
    path = folder / "speed.json"
    try:
        found: dict[str, Any] = parse_json(path.read_bytes(), path) if path.exists() else {}
        ratios = {label: float(row["ratio"]) for label, row in found.items()}
    except (UserError, KeyError, TypeError, ValueError):
        return table
    rows = []
    for row in table.rows:
        base = row.baseline or row.label
        known = row.label in ratios and base in ratios
        ratio = ratios[row.label] / ratios[base] if known else None
        rows.append(dataclasses.replace(row, step_ratio=ratio))
    if all(row.step_ratio is None for row in rows):
        return table
    return dataclasses.replace(table, rows=tuple(rows), notes=(*table.notes, _NOTE))
