"""Collects how long steps take and how much of that the loop waits for data."""

import time

import numpy as np


class StepTimes:
    """The steps since the last `take`; the clock is the host's, and reading it is all that it
    costs.
    """

    def __init__(self):
        self._steps: list[float] = []
        self._waits: list[float] = []
        self.restart(0.0)

    def restart(self, waited: float) -> None:
        """The next step begins now; `waited` are the seconds that the loop has waited so far."""
        self._begin, self._waited = time.perf_counter(), waited

    def add(self, waited: float) -> None:
        """A step has ended, and the next one begins."""
        self._steps.append(time.perf_counter() - self._begin)
        self._waits.append(waited - self._waited)
        self.restart(waited)

    def take(self) -> dict[str, float]:
        """Percentiles of the seconds of a step, and the share of all of them that was waited for
        the next batch; {} where there was no step.
        """
        if not self._steps:
            return {}
        levels = (50, 90, 99)
        percentiles = zip(levels, np.percentile(self._steps, levels), strict=True)
        found = {f"perf/step_seconds_p{level}": round(float(x), 6) for level, x in percentiles}
        found["perf/input_stall"] = round(sum(self._waits) / sum(self._steps), 6)
        self._steps, self._waits = [], []
        return found
