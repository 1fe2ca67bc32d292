"""By which number is a run judged? The one that tables rank by, early stopping watches and run.py
prints: of a task its metric, else what its objective compares.
"""

from typing import NamedTuple

from lm.config import Config
from lm.objective import OBJECTIVES
from lm.task import build_task

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


def headline(config: Config, metric: str | None = None) -> Headline:
    """The metric by which runs of a config are judged, or `metric` in its place."""
    if not config.task.name:
        name = metric or OBJECTIVES[config.objective].metric
        return Headline(name, lower=name not in _MORE_IS_BETTER)
    task = build_task(config)
    name = metric or f"eval/{task.main}"
    lower = ("forgetting", *task.lower)  # the former is of a chain of tasks
    return Headline(name, lower=name.removeprefix("eval/") in lower)
