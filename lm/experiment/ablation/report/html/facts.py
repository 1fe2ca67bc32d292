"""Collects what a report says of an ablation besides its numbers: what differs between the configs,
what made the runs, and how to run it again.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from lm.checkpoints.identity import identity
from lm.errors import UserError
from lm.experiment.ablation.report.recorded import Ablated, read_config, varied_keys
from lm.experiment.ablation.statistics.point_result import read_result, spread
from lm.experiment.ablation.statistics.rows import Table


def config_differences(ablated: Ablated, table: Table) -> dict[str, dict[str, Any]]:
    """By the label of a row, the dotted keys whose values are not its baseline's, with its values;
    of rows that have not begun, what they set. Of a baseline, its values of all those keys.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for point in ablated.points:
        if point.row not in found and (point.workdir / "config.json").exists():
            try:
                found[point.row] = identity(read_config(point.workdir))
            except UserError:  # a damaged file
                continue
    keys = varied_keys(list(found.values()))
    sets = {point.row: dict(point.overrides) for point in ablated.points}
    differing = {}
    for row in table.rows:
        own, base = found.get(row.label), found.get(row.baseline or row.label)
        if own is None or base is None:
            differing[row.label] = sets.get(row.label, {})
        elif not row.baseline:
            differing[row.label] = {key: own.get(key) for key in keys}
        else:
            differing[row.label] = {k: own.get(k) for k in keys if own.get(k) != base.get(k)}
    return differing


def environment(ablated: Ablated, table: Table) -> dict[str, list[tuple[str, int]]]:
    """What made the finished runs: devices, commits, data and versions, each with its values and
    how many runs have each.
    """
    shown = {row.label for row in table.rows}
    runs = [read_result(point, table.metric) for point in ablated.points if point.row in shown]
    done = [run for run in runs if run.result]
    versions = {name for run in done for name in run.result.get("versions") or ()}
    keys = ["commit", "device", "mesh", "data_hash", "steps", "batch_size", *sorted(versions)]
    found = {key: spread(done, key) for key in keys if any(key in run.result for run in done)}
    return {
        key: [(value, len(names)) for value, names in values.items()]
        for key, values in found.items()
    }


def commands(ablated: Ablated, workdir: str, commits: list[str]) -> list[str]:
    """The lines that make the table again; empty where its config file is not known."""
    source = ablated.source
    if not source.config:
        return []
    given = [f"--config={source.config}", *source.flags, f"--workdir={workdir}"]
    checkout = [f"git checkout {commits[0].rstrip('+')}"] if len(commits) == 1 else []
    return [*checkout, shlex.join(["python", "run.py", "table", *given])]
