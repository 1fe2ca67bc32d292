"""By which number is a run judged? The one that tables rank by, early stopping watches and run.py
prints: of a task its metric, else what its objective compares.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lm.config import Config
from lm.data.objectives import OBJECTIVES
from lm.errors import UserError
from lm.tasks import build_task

# Of what is said of held-out text.
_MORE_IS_BETTER = ("eval/accuracy", "eval/sparsemax_score")


class Headline(NamedTuple):
    """A metric of the evaluation.

    Attributes:
      name: such as "eval/accuracy".
      lower: whether less is better.
    """

    name: str
    lower: bool

    @property
    def unit(self) -> str:
        """See `unit`."""
        return unit(self.name)


def unit(metric: str) -> str:
    """The name of a metric in words, such as "bits per byte"."""
    return metric.removeprefix("eval/").replace("_", " ")


def check_finite(judged: Headline, metrics: Mapping[str, Any]) -> None:
    """Raises UserError where a run cannot be judged: by a NaN or an infinity."""
    if not math.isfinite(value := metrics[judged.name]):
        raise UserError(
            f"{judged.name} is {value} after training, so the run does not count as finished; its "
            "state is saved. Begin again in another --workdir with a lower "
            "config.optimizer.learning_rate or a clip_norm"
        )


def headline(config: Config, metric: str | None = None, scored: Collection[str] = ()) -> Headline:
    """The metric by which runs of a config are judged, or `metric` in its place.

    `scored` are the names of what was measured, where that is known: of a task's metrics the first
    that was, as tags that mark no entities have no entity F1.
    """
    if not config.task.name:
        name = metric or OBJECTIVES[config.objective].metric
        return Headline(name, lower=name not in _MORE_IS_BETTER)
    task = build_task(config)
    name = metric or f"eval/{task.main}"
    if metric is None and not task.metric:
        name = next((f"eval/{each}" for each in task.measures if f"eval/{each}" in scored), name)
    lower = ("forgetting", *task.lower)  # the former is of a chain of tasks
    return Headline(name, lower=name.removeprefix("eval/") in lower)


def summary(result: Mapping[str, Any], config: Config) -> str:
    """The metrics of a run's result by which it is judged and usually compared, in a line."""
    shown = told(result, config)
    if "interval" in result:
        shown[0] += " [{:.4f}, {:.4f}]".format(*result["interval"])
    return f"{', '.join(shown)}, {result['seconds']:.0f} s"


def told(metrics: Mapping[str, Any], config: Config) -> list[str]:
    """Those metrics in words, such as "2.1034 bits per byte"; the one that judges comes first."""
    judged = headline(config, scored=metrics)
    others = [name for name in ("eval/nats_per_token", "eval/accuracy") if name in metrics]
    return [f"{metrics[name]:.4f} {unit(name)}" for name in dict.fromkeys([judged.name, *others])]
