"""Axes of the report's figures: positions in percent of the width or height, and round ticks."""

import math
import re
from typing import NamedTuple

from lm.evaluation.html.markup import Markup, tag


class Axis(NamedTuple):
    """An axis from one value to another."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """The position of a value, in percent from `low`."""
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the axis, about `count` of them."""
        size = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(size))
        step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= size * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def labels(self, count: int = 5, sign: str = "") -> list[tuple[float, str]]:
        """The ticks and their texts, with equally many digits."""
        ticks = self.ticks(count)
        step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
            digits += 1
        return [(tick, minus(f"{tick:{sign if tick else ''},.{digits}f}")) for tick in ticks]


def minus(text: str) -> str:
    """The text with a minus sign for each hyphen that begins a number."""
    return re.sub(r"(?<![\w.])-(?=[\d.])", "\N{MINUS SIGN}", text)


def percent(value: float) -> str:
    """A length in percent."""
    return f"{value:.2f}%"


def frame(x: Axis, y: Axis, count: int = 6) -> Markup:
    """The lines of a grid and the texts of its ticks, below and on the left of a plot."""
    parts = []
    for value, text in y.labels():
        place = percent(100 - y.at(value))
        parts.append(tag("line", x1="0", x2="100%", y1=place, y2=place, class_="grid"))
        parts.append(tag("text", text, x="-8", y=place, dy=".32em", text_anchor="end"))
    for value, text in x.labels(count):
        place = percent(x.at(value))
        parts.append(tag("line", x1=place, x2=place, y1="0", y2="100%", class_="grid"))
        parts.append(tag("text", text, x=place, y="100%", dy="1.5em", text_anchor="middle"))
    parts.append(tag("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"))
    return Markup("".join(parts))
