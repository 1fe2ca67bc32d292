"""Holds what the command line makes of a config's ablation."""

import dataclasses
from collections.abc import Sequence

from lm.experiment.ablation.draw import draw_rows
from lm.experiment.ablation.tuning import Tuning
from lm.experiment.ablation.vary import Row, named_values, vary_rows


@dataclasses.dataclass(frozen=True)
class Variation:
    """Rows and seeds from the command line; the attributes are the flags of the same names.

    Attributes:
      vary: see `vary_rows`.
      draw, trials: see `draw_rows`.
      seeds: how many; None: all that the file has, or one.
      tune: values to try for each row, as those of `vary`; (): those of the file's TUNE.
    """

    vary: Sequence[str] = ()
    draw: Sequence[str] = ()
    trials: int | None = None
    seeds: int | None = None
    tune: Sequence[str] = ()

    @property
    def is_given(self) -> bool:
        """Whether it makes an ablation of a file without sweep()."""
        return bool(self.vary or self.draw or self.trials or self.seeds)

    def rows(self, own: Sequence[Row]) -> list[Row]:
        """The rows that it makes of a file's own; raises UserError as those that make them."""
        return draw_rows(vary_rows(own, self.vary), self.draw, self.trials)

    def tuning(self, own: Tuning | None) -> Tuning | None:
        """What is tuned, of a file that tunes its `own`; raises UserError as `named_values`."""
        if not self.tune:
            return own
        return dataclasses.replace(own or Tuning({}), values=named_values(self.tune, "tune"))


UNVARIED = Variation()
