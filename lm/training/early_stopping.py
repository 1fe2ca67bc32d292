"""Stops a run early, where a held-out metric has not improved for some evaluations in a row; a run
that resumes reads from metrics.jsonl what is known of it.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any


class Stopping:
    """Watches one metric of the evaluations of a run.

    Attributes:
      metric: its name, such as "eval/accuracy".
      lower: whether less is better.
      patience: evaluations without a better value after which training is done.
      best: the step of the best value so far, the first of equals; None before any. What is not
        finite is never better, whatever came before.
    """

    def __init__(self, metric: str, lower: bool, patience: int):
        self.metric, self.lower, self.patience = metric, lower, patience
        self.best: int | None = None
        self._value = 0.0
        self._since = 0  # evaluations after the best

    def recall(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Sees the evaluations that a run has recorded, in their order."""
        for record in records:
            if self.metric in record:
                self.see(record["step"], record[self.metric])

    def see(self, step: int, value: float) -> bool:
        """Takes note of an evaluation; True where it is the best so far."""
        better = math.isfinite(value) and (
            self.best is None or (value < self._value if self.lower else value > self._value)
        )
        if better:
            self.best, self._value, self._since = step, value, 0
        else:
            self._since += 1
        return better

    @property
    def done(self) -> bool:
        """Whether to train no longer."""
        return self._since >= self.patience
