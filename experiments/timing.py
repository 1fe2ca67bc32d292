"""Times functions next to each other. They run in turns, so that a noisy machine is
noisy for all of them; whoever times calls each once before, as a first call also compiles.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Hashable)
Function = Callable[[], object]


def seconds(function: Function) -> float:
    """Wall time of one call, which waits for what it computes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(
    functions: Mapping[Name, Function], rounds: int, measure: Callable[[Function], Any] = seconds
) -> dict[Name, list]:
    """What `measure` says of each function, [rounds]: all of them once, then all of them again."""
    found: dict[Name, list] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(measure(function))
    return found


def medians(times: Mapping[Name, Sequence[float]]) -> dict[Name, float]:
    """The median over rounds, of each."""
    return {name: statistics.median(values) for name, values in times.items()}


def median_ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """The median over rounds of the ratio within a round, to which slow rounds are alike."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))
