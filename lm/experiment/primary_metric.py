"""The primary metric of a run, by which tables rank, early stopping decides and run.py reports: the
metric of its task, or else of its objective.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lm.config import Config
from lm.data.objectives import OBJECTIVES
from lm.errors import UserError
from lm.tasks import build_task

_HIGHER_IS_BETTER = ("eval/accuracy", "eval/sparsemax_score")  # of language models


class PrimaryMetric(NamedTuple):
    """A metric of the evaluation.

    Attributes:
      name: such as "eval/accuracy".
      lower_is_better: whether smaller values are better.
    """

    name: str
    lower_is_better: bool

    @property
    def unit(self) -> str:
        """See `unit`."""
        return unit(self.name)


def unit(metric: str) -> str:
    """The name of a metric in words, such as "bits per byte"."""
    return metric.removeprefix("eval/").replace("_", " ")


def check_finite(metric: PrimaryMetric, metrics: Mapping[str, Any]) -> None:
    """Raises UserError where the primary metric of a run is NaN or infinite."""
    if not math.isfinite(value := metrics[metric.name]):
        raise UserError(
            f"{metric.name} is {value} after training, so the run does not count as finished; its "
            "state is saved. Start again in another --workdir with a lower "
            "config.optimizer.learning_rate or a clip_norm"
        )


def primary_metric(
    config: Config, metric: str | None = None, available: Collection[str] = ()
) -> PrimaryMetric:
    """The primary metric of runs of a config, or `metric` in its place.

    `available` are the names of the metrics that were computed, where they are known: the primary
    metric of a task is the first of its metrics that was, as token classification without entities
    has no entity F1.
    """
    if not config.task.name:
        name = metric or OBJECTIVES[config.objective].metric
        return PrimaryMetric(name, lower_is_better=name not in _HIGHER_IS_BETTER)
    task = build_task(config)
    name = metric or f"eval/{task.main_metric}"
    if metric is None and not task.metric:
        name = next((f"eval/{each}" for each in task.metrics if f"eval/{each}" in available), name)
    lower = ("forgetting", *task.lower_is_better)  # the former is of a chain of tasks
    return PrimaryMetric(name, lower_is_better=name.removeprefix("eval/") in lower)


def summary(result: Mapping[str, Any], config: Config) -> str:
    """The main metrics of a run's result and its time, in one line."""
    shown = describe_metrics(result, config)
    if "interval" in result:
        shown[0] += " [{:.4f}, {:.4f}]".format(*result["interval"])
    return f"{', '.join(shown)}, {result['seconds']:.0f} s"


def describe_metrics(metrics: Mapping[str, Any], config: Config) -> list[str]:
    """The main metrics in words, such as "2.1034 bits per byte"; the primary one comes first."""
    primary = primary_metric(config, available=metrics)
    others = [name for name in ("eval/nats_per_token", "eval/accuracy") if name in metrics]
    return [f"{metrics[name]:.4f} {unit(name)}" for name in dict.fromkeys([primary.name, *others])]
