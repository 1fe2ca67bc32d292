"""By which number is a run judged? The one that tables rank by, early stopping watches and run.py
prints: of a task its metric, else what its objective compares.
"""

from typing import NamedTuple

from lm.config import Config
from lm.objective import OBJECTIVES
from lm.task import build_task


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
        """The name in words, such as "bits per byte"."""
        return self.name.removeprefix("eval/").replace("_", " ")


def headline(config: Config) -> Headline:
    """The metric by which runs of a config are judged."""
    if not config.task.name:
        return Headline(OBJECTIVES[config.objective].metric, lower=True)
    task = build_task(config)
    return Headline(f"eval/{task.main}", lower=task.main in task.lower)
