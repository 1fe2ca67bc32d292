"""Holds what the command line makes of a config's ablation."""

import dataclasses
from collections.abc import Sequence

from lm.experiment.ablation.draw import draw_rows
from lm.experiment.ablation.vary import Row, vary_rows


@dataclasses.dataclass(frozen=True)
class Variation:
    """Rows and seeds from the command line; the attributes are the flags of the same names.

    Attributes:
      vary: see `vary_rows`.
      draw, trials: see `draw_rows`.
      seeds: how many; None: all that the file has, or one.
    """

    vary: Sequence[str] = ()
    draw: Sequence[str] = ()
    trials: int | None = None
    seeds: int | None = None

    @property
    def is_given(self) -> bool:
        """Whether it makes an ablation of a file without sweep()."""
        return bool(self.vary or self.draw or self.trials or self.seeds)

    def rows(self, own: Sequence[Row]) -> list[Row]:
        """The rows that it makes of a file's own; raises UserError as those that make them."""
        return draw_rows(vary_rows(own, self.vary), self.draw, self.trials)


UNVARIED = Variation()
