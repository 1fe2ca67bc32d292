"""Reads the result of an ablation's point, and tells which points cannot be compared."""

import collections
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from lm.errors import UserError
from lm.experiment import failures
from lm.experiment.point_list import Planned
from lm.training.metric_writer import with_nan

# Runs are compared only where these are equal: tokens seen where they are known of all runs, and
# otherwise what they follow from.
_DATA = ("data_hash", "held-out bytes", "held-out tokens", "held-out examples")
_TOKENS, _LENGTH = ("tokens seen",), ("steps", "batch_size")
_ROUNDING = 1.01  # ratio of tokens seen below which whole batches of other sizes may differ


class PointResult(NamedTuple):
    """A point and what it found.

    Attributes:
      point: the point.
      result: of result.json, with the versions of packages; empty unless usable.
      problem: why it is not usable.
    """

    point: Planned
    result: dict[str, Any]
    problem: str = ""

    @property
    def name(self) -> str:
        """Row and seed."""
        return f"{self.point.row} seed {self.point.seed}"

    @property
    def failed(self) -> bool:
        """Whether the run ended without a finite metric."""
        return self.problem.startswith("failed")


def read_result(point: Planned, metric: str) -> PointResult:
    """The result of a point, which is usable if it has a finite metric."""
    if not (path := point.workdir / "result.json").exists():
        reason = failures.reason(point.workdir)
        return PointResult(point, {}, f"failed, {reason}" if reason else "not finished")
    try:
        result = with_nan(json.loads(path.read_text()))
        seed, value = result.get("seed", point.seed), result.get(metric, "absent")
    except (ValueError, AttributeError):
        return PointResult(point, {}, f"unreadable, {path} is not a JSON object")
    if seed != point.seed:
        return PointResult(point, {}, f"mislabelled, {path} is of seed {seed}")
    if value == "absent":
        return PointResult(point, {}, f"{path} has no {metric!r}")
    if not (isinstance(value, int | float) and math.isfinite(value)):
        return PointResult(point, {}, f"failed, {metric} is {value}")
    known = (result.get("versions") or {}) | result | _held_out(result)
    return PointResult(point, known | _tokens_seen(result, point.workdir / "config.json"))


def _tokens_seen(result: Mapping[str, Any], path: epath.Path) -> dict[str, Any]:
    """Positions of all training batches; of results that do not tell, by the run's config."""
    if "tokens_seen" in result:
        return {"tokens seen": result["tokens_seen"]}
    try:
        length = json.loads(path.read_text())["data"]["seq_len"]
        return {"tokens seen": result["steps"] * result["batch_size"] * length}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _held_out(result: Mapping[str, Any]) -> dict[str, Any]:
    """The size of the held-out data, in bytes where known, so that tokenizers can be compared."""
    sizes = {name: result.get(f"eval/{name}") for name in ("bytes", "examples", "tokens")}
    return next(({f"held-out {k}": v} for k, v in sizes.items() if v is not None), {})


def refuse(runs: Sequence[PointResult], metric: str) -> None:
    """Raises UserError for points that make no table."""
    name, count = collections.Counter(run.name for run in runs).most_common(1)[0]
    if count > 1:
        raise UserError(f"{name} is given {count} times; give each point once")
    lacking = [run.problem for run in runs if run.problem.endswith(f"has no {metric!r}")]
    if lacking and not any(run.result for run in runs):
        raise UserError(f"no finished point has the metric: {lacking[0]}; choose one it has")


def comparable(done: Sequence[PointResult], matched: str = "") -> bool:
    """Whether finished points have seen equally many tokens of the same data, and were evaluated on
    equally much. Points that were `matched` in another quantity may have seen more or fewer.
    """
    for key in criteria(done, matched):
        found = spread(done, key)
        if key in _TOKENS:
            seen = [float(value) for value in found]
            if max(seen) > _ROUNDING * min(seen):
                return False
        elif len(found) > 1:
            return False
    return True


def criteria(done: Sequence[PointResult], matched: str = "") -> tuple[str, ...]:
    """The keys of results that must be equal."""
    if matched:
        return _DATA
    known = done and all("tokens seen" in run.result for run in done)
    return (_TOKENS if known else _LENGTH) + _DATA


def spread(runs: Sequence[PointResult], key: str) -> dict[str, list[str]]:
    """Groups the names of runs by their result's value of `key`; the commonest first."""
    found = collections.defaultdict(list)
    for run in runs:
        found[json.dumps(run.result.get(key, "unknown")).strip('"')].append(run.name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def mixture(found: Mapping[str, Sequence[str]]) -> str:
    """What `spread` found, in words."""
    most, *rest = found
    named = (f"{v} in {', '.join(found[v][:3])}{', ...' * (len(found[v]) > 3)}" for v in rest)
    return f"{most} in {len(found[most])} points but " + " and ".join(named)
