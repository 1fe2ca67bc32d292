"""Decides which checkpoints of a run are kept."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orbax.checkpoint import v1 as ocp

policies = ocp.training.preservation_policies


@dataclasses.dataclass
class Preservation:
    """Orbax's policy: the latest, those of every so many steps, the best, and a protected one.

    Attributes:
      latest: how many of the latest are kept.
      every: multiples of it are kept; 0: none.
      best: how many of the best evaluated are kept.
      metric: the name of the metric by which they are.
      lower_is_better: whether smaller values of it are better.
      scores: its values, by evaluated step.
      protected: a step that is kept until another is protected.
    """

    latest: int
    every: int = 0
    best: int = 0
    metric: str = ""
    lower_is_better: bool = True
    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    protected: int | None = None

    def see(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes note of an evaluation."""
        if self.metric in metrics:
            self.scores[step] = metrics[self.metric]

    def best_steps(self, steps: Collection[int]) -> list[int]:
        """Those of the steps with the best finite scores, the earlier of equals first."""
        sign = 1 if self.lower_is_better else -1
        scored = [step for step in steps if math.isfinite(self.scores.get(step, math.nan))]
        return sorted(scored, key=lambda step: (sign * self.scores[step], step))[: self.best]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer for each checkpoint, oldest first."""
        kept = self.best_steps([checkpoint.step for checkpoint in checkpoints])
        kept += [] if self.protected is None else [self.protected]
        parts: list[Any] = [policies.LatestN(self.latest), policies.CustomSteps(kept)]
        parts += [policies.EveryNSteps(self.every)] if self.every else []
        return policies.AnyPreservationPolicy(parts).should_preserve(checkpoints, context=context)
