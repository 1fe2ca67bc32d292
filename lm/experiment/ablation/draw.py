"""Makes rows of an ablation from quasi-random draws that the command line describes (--draw)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.stats import qmc

from lm.config import declared
from lm.errors import UserError
from lm.experiment.ablation.vary import Row, check_unset, parse_number, parse_value, per_key, split

_DIGITS = 4  # significant ones of a drawn number: rates need no more, and labels stay short
_MOST = 2**16  # points of a sequence that are looked at for draws that differ
_FORMS = "use LOW:HIGH, log:LOW:HIGH or {A,B,C}"


class Distribution(NamedTuple):
    """What the values of a key are drawn from.

    Attributes:
      key: dotted.
      choices: the values to choose from; (): a range.
      low, high: of the range, both within it.
      log: uniform in the logarithm.
      whole: only whole numbers.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def at(self, u: float) -> Any:
        """The value at a quantile u, at least 0 and below 1."""
        if self.choices:
            return self.choices[int(u * len(self.choices))]
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        else:
            value = low + u * (high - low)
        if self.whole:
            return min(int(value), int(self.high))
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """A number of the range to a few digits."""
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    @property
    def number(self) -> float:
        """How many values there are."""
        if self.choices:
            return len(self.choices)
        return self.high - self.low + 1 if self.whole else math.inf


def draw_rows(rows: Sequence[Row], drawn: Sequence[str], trials: int | None) -> list[Row]:
    """Every row with each of the same `trials` draws, draw by draw.

    The draws are those of a scrambled Sobol sequence: more trials keep the first ones.

    Args:
      rows: see `vary_rows`.
      drawn: texts KEY=LOW:HIGH (uniform), KEY=log:LOW:HIGH or KEY={VALUE,VALUE,...}.
      trials: how many draws, each another one.

    Raises:
      UserError: as `vary_rows`; a range is empty, or there are fewer values than trials.
    """
    if not drawn:
        if trials is not None:
            raise UserError(
                f"--trials={trials} needs --draw=KEY=LOW:HIGH, which says what is drawn"
            )
        return list(rows)
    if trials is None:
        raise UserError(f"--draw={drawn[0]} needs --trials=N, the number of draws")
    found = distributions(drawn)
    check_unset(rows, [each.key for each in found], "draw")
    possible = math.prod(each.number for each in found)
    if trials > possible:
        raise UserError(
            f"--trials={trials} is more than the {possible:.0f} values that --draw has; use "
            f"{possible:.0f}, or --vary for all of them"
        )
    draws = _draws(found, trials)
    return [{**row, **draw} for draw in draws for row in rows]


def distributions(drawn: Sequence[str]) -> list[Distribution]:
    """What texts of --draw say; raises UserError as `draw_rows`."""
    return [_distribution(key, text) for key, text in per_key(drawn, "draw")]


def _draws(found: Sequence[Distribution], trials: int) -> list[Row]:
    draws: dict[str, Row] = {}
    size = 2 ** math.ceil(math.log2(trials))
    while len(draws) < trials:
        if size > _MOST:
            raise UserError(
                f"--trials={trials}: only {len(draws)} of the values that --draw has were drawn; "
                "use fewer trials, or --vary for all of them"
            )
        sequence = qmc.Sobol(len(found), scramble=True, rng=0)
        for point in sequence.random_base2(int(math.log2(size))):
            draw = {each.key: each.at(float(u)) for each, u in zip(found, point, strict=True)}
            draws.setdefault(repr(draw), draw)
        size *= 2
    return list(draws.values())[:trials]


def _distribution(key: str, text: str) -> Distribution:
    what, kind = f"--draw={key}={text}", declared()[key].kind
    if text.startswith("{") and text.endswith("}"):
        choices = tuple(parse_value(key, part, what) for part in split(text[1:-1], what))
        if len({repr(choice) for choice in choices}) < len(choices):
            raise UserError(f"{what} names a value twice; name each once")
        return Distribution(key, choices)
    *scale, low, high = text.split(":") if text.count(":") in (1, 2) else ("?", "", "")
    if scale not in ([], ["log"]):
        raise UserError(f"{what} says no distribution; {_FORMS}")
    if kind not in (int, float):
        raise UserError(f"{what}: {key} is no number; name its values by a list such as {{1,2,4}}")
    found = Distribution(
        key, (), _number(kind, low, what), _number(kind, high, what), bool(scale), kind is int
    )
    if not found.low < found.high:
        raise UserError(f"{what}: {low} is not below {high}")
    if found.log and found.low <= 0:
        raise UserError(f"{what}: a range in the logarithm begins above 0, not at {low}")
    return found


def _number(kind: type, text: str, what: str) -> float:
    value = parse_number(kind, text.strip())
    if value is None:
        need = "whole number" if kind is int else "number"
        raise UserError(f"{what}: {text!r} is no {need}; {_FORMS}")
    return value
