"""The state of a run, or of the runs of an ablation, as their folders show it: without the config,
and without JAX.
"""

import math
import time
from collections import Counter
from typing import Any, NamedTuple

from etils import epath

from lm.checkpoints.staging import is_complete, last_written
from lm.data.bucket import modified
from lm.data.files import parse_json
from lm.errors import UserError, counted
from lm.experiment import failures
from lm.experiment.attempts import read_attempts
from lm.experiment.claim import Sighting, last_claim
from lm.experiment.point_list import recorded_points

# In the order in which they are counted.
STATES = ("finished", "running", "interrupted", "failed", "missing")
_UNITS = (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class RunStatus(NamedTuple):
    """The state of a run, one of STATES, and what its folder tells of it."""

    name: str
    state: str
    details: str


def describe_status(folder: epath.PathLike) -> list[str]:
    """A line for a run, or of an ablation a line with how many runs are in which state and one for
    each.

    Raises:
      UserError: the folder holds no run.
    """
    folder = epath.Path(folder)
    found = run_statuses(folder)
    if not found:
        what = "is empty or holds no run" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; give the --workdir of a train, sweep or table command")
    if _is_run(folder):
        return [f"{folder}: {found[0].state}: {found[0].details}"]
    counts = Counter(each.state for each in found)
    number = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    width = max(len(each.name) for each in found)
    lines = [f"  {each.name:{width}}  {each.state:11}  {each.details}" for each in found]
    return [f"{folder}: {counted(len(found), 'run')}: {number}", *map(str.rstrip, lines)]


def run_statuses(folder: epath.PathLike) -> list[RunStatus]:
    """The status of the run in a folder, or of each run of an ablation; [] where there is none.

    Runs of an ablation that have no folder yet are known by the list that its sweep has written.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        return []
    if _is_run(folder):
        return [_status(folder)]
    points = recorded_points(folder)
    others = (child for child in folder.iterdir() if child.is_dir() and child.name not in points)
    found = [_status(folder / name) for name in points]
    for child in sorted(others):
        if (status := _status(child)).state != "missing":
            found.append(status)
    if not found and (claim := last_claim(folder)) is not None and claim.in_force:
        return [RunStatus(folder.name, "running", f"just beginning; {_held(claim)}")]
    return found


def _is_run(folder: epath.Path) -> bool:
    return (folder / "config.json").exists()


def _status(folder: epath.Path) -> RunStatus:
    claim, progress, attempts = last_claim(folder), _progress(folder), len(read_attempts(folder))
    result, reason = _json(folder / "result.json"), failures.reason(folder)
    if {"steps", "seconds"} <= result.keys():
        state, details = "finished", f"{result['steps']} steps in {_time(result['seconds'])}"
    elif claim is not None and claim.in_force:
        state, details = "running", f"{progress or 'just beginning'}; {_held(claim)}"
    elif reason is not None:
        state, details = "failed", reason
    elif _is_run(folder) or claim is not None or attempts:
        held = [f"was {_held(claim)}"] if claim is not None else []
        state, details = "interrupted", "; ".join([progress or "no step", *held])
    else:
        state, details = "missing", ""
    if attempts > 1:
        details += f"; {counted(attempts, 'attempt')}"
    return RunStatus(folder.name, state, details)


def _held(claim: Sighting) -> str:
    holder = claim.holder or "a process that is just beginning"
    return f"held by {holder}, seen {_time(claim.age)} ago"


def _progress(folder: epath.Path) -> str:
    """The last step that was logged, and the checkpoint from which the run would go on."""
    config, logged = _json(folder / "config.json"), _last_step(folder / "metrics.jsonl")
    total = f" of {config['steps']}" if "steps" in config and config.get("epochs") is None else ""
    step = [f"step {logged}{total}"] if logged else []
    saved = _checkpoints(folder)
    if saved:
        newest = max(saved, key=lambda path: int(path.name))
        age = time.time() - modified(last_written(newest))
        step.append(f"checkpoint of step {newest.name}, {_time(age)} ago")
    elif step:
        step.append("no checkpoint")
    return "; ".join(step)


def _checkpoints(folder: epath.Path) -> list[epath.Path]:
    """The complete checkpoints of a run; of a chain of runs, those of the last that has any."""
    saved = folder / "checkpoints"
    if saved.exists():
        return list(filter(is_complete, saved.iterdir()))
    if not folder.exists():
        return []
    stages = [child for child in folder.iterdir() if child.name.isdecimal() and _is_run(child)]
    return next(filter(None, map(_checkpoints, sorted(stages, reverse=True))), [])


def _last_step(metrics: epath.Path) -> int | None:
    """The step of the last whole line of a metrics.jsonl."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    for line in reversed(lines):
        try:
            step = parse_json(line, metrics).get("step")
        except UserError:  # was cut off by a kill
            continue
        if isinstance(step, int):
            return step
    return None


def _json(path: epath.Path) -> dict[str, Any]:
    """The content of a file of a run; {} where it is missing or damaged."""
    try:
        return parse_json(path.read_bytes(), path) if path.exists() else {}
    except UserError:
        return {}


def _time(seconds: float) -> str:
    """A duration in one unit: "42 s", "3 min", "2.5 h", "4.0 days"."""
    if not math.isfinite(seconds):
        return "an unknown time"
    name, size = next((unit for unit in _UNITS if seconds >= 2 * unit[1]), _UNITS[-1])
    digits = 1 if size >= 3_600 else 0
    return f"{max(seconds, 0) / size:.{digits}f} {name}"
