"""Compares what a recipe measured with what was published, and formats the deviation report."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm.errors import counted
from lm.experiment.reproduce.expected import BOUNDS, Expected, Quantity
from lm.experiment.reproduce.measure import SeedResult

AGREE = ("within tolerance", "as published")
DISAGREE = ("outside tolerance", "not as published")


class Deviation(NamedTuple):
    """How far a measured quantity is from the published one.

    Attributes:
      ours: mean over seeds.
      difference: `ours` minus the published value, or minus the limit of a bound.
      interval: 95 % Student-t interval of the difference over seeds; None where seeds do not
        differ, or there is one.
      result: "within tolerance" or "as published" where the whole interval is; "outside tolerance"
        or "not as published" where none of it is; else "not decided". Before all seeds are
        measured, or of a single one of several, it says so.
    """

    ours: float
    difference: float
    interval: tuple[float, float] | None
    result: str


def deviation(quantity: Quantity, values: Sequence[float], planned: int, seeds: int) -> Deviation:
    """Compares a quantity's values, one for each seed so far, with what was published.

    Args:
      planned: seeds of this report.
      seeds: all that the recipe has.
    """
    ours = statistics.fmean(values)
    difference, interval = ours - quantity.limit, None
    if len(values) > 1 and max(values) > min(values):
        from scipy import stats  # slow to import

        error = statistics.stdev(values) / math.sqrt(len(values))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
        interval = (difference - half, difference + half)
    if len(values) < planned:
        return Deviation(ours, difference, interval, f"in progress ({len(values)} of {planned})")
    if len(values) == 1 < seeds:
        return Deviation(ours, difference, interval, "one seed")
    low, high = interval or (difference, difference)
    inside, outside = _verdict(quantity, low, high)
    words = AGREE if inside else DISAGREE if outside else 2 * ("not decided",)
    return Deviation(ours, difference, interval, words[quantity.tolerance is None])


def _verdict(quantity: Quantity, low: float, high: float) -> tuple[bool, bool]:
    """Whether all of an interval of differences is as expected, and whether none of it is."""
    match quantity.bound:
        case "at_most":
            return high <= 0, low > 0
        case "below":
            return high < 0, low >= 0
        case "at_least":
            return low >= 0, high < 0
        case "above":
            return low > 0, high <= 0
    assert quantity.tolerance is not None
    return max(-low, high) <= quantity.tolerance, max(low, -high) > quantity.tolerance


def compare(
    expected: Expected, results: Sequence[SeedResult], planned: int, seeds: int
) -> dict[str, Deviation]:
    """The deviation of each quantity; see `deviation`."""
    return {
        name: deviation(quantity, [each.values[name] for each in results], planned, seeds)
        for name, quantity in expected.quantities.items()
    }


def to_json(
    expected: Expected, deviations: Mapping[str, Deviation], results: Sequence[SeedResult]
) -> dict[str, Any]:
    """The report as data, with the values of each seed."""
    return {
        "name": expected.name,
        "source": expected.source,
        "quantities": {
            name: {"published": expected.quantities[name].published, **each._asdict()}
            for name, each in deviations.items()
        },
        "seeds": [each._asdict() for each in results],
    }


def to_markdown(
    expected: Expected, deviations: Mapping[str, Deviation], results: Sequence[SeedResult]
) -> str:
    """The deviation report: ours, theirs, difference, result, and in what the setups differ."""
    quantities = expected.quantities
    table = {
        "quantity": [quantities[name].what for name in deviations],
        "ours": [f"{each.ours:.4g}" for each in deviations.values()],
        "published": [_published(quantities[name]) for name in deviations],
        "difference [95 %]": [_difference(each) for each in deviations.values()],
        "result": [each.result for each in deviations.values()],
    }
    commits = sorted({str(each.commit) for each in results})
    packages = ", ".join(f"{name} {version}" for name, version in results[-1].versions.items())
    seconds = sum(each.seconds for each in results)
    return "\n".join(
        [
            f"# {expected.name}",
            "",
            expected.title,
            "",
            f"Source: {expected.source}.",
            "",
            *aligned(table),
            "",
            f"Published setup: {expected.published_setup}",
            "",
            "What differs here:",
            "",
            *(f"- {each}" for each in expected.differs),
            "",
            f"Mean of {counted(len(results), 'seed')}, {seconds:.0f} s of processor time, commit "
            f"{', '.join(commits)}; {packages}. An interval is of its quantity alone.",
            "",
        ]
    )


def _published(quantity: Quantity) -> str:
    if quantity.tolerance is not None:
        return f"{quantity.limit:g} ± {quantity.tolerance:g}"
    said = quantity.published
    limit = f"{BOUNDS[quantity.bound]} {quantity.limit:g}"
    return f"{limit} ({said if isinstance(said, str) else f'{said:g}'})" if said != "" else limit


def _difference(each: Deviation) -> str:
    if each.interval is None:
        return f"{each.difference:+.2g}"
    return "{:+.2g} [{:+.2g}, {:+.2g}]".format(each.difference, *each.interval)


def aligned(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a Markdown table whose columns are also aligned in a terminal."""
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    rows = [list(columns), ["-" * width for width in widths], *zip(*columns.values(), strict=True)]
    return [
        "| " + " | ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
