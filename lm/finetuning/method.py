"""What is a fine-tuning method? What it adds to a model, and which of the parameters it trains."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lm.config import Config

# (names of a parameter's path, config) -> how many of its leading layers stay as they are: 0 trains
# all of it, None nothing. Only parameters of scanned layers have layers to count.
Trains = Callable[[tuple[str, ...], Config], int | None]


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
      trains: which parameters; see `Trains`.
      adds: a class built with the method's options, whose instances intercept the calls of modules
        (`flax.linen.intercept_methods`) and add modules, all of one `name`, to them; None: nothing.
      others: options that the method has besides those of `adds`.
    """

    trains: Trains
    adds: Any = None
    others: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the method's options, knobs of `config.finetuning`."""
        own = () if self.adds is None else tuple(f.name for f in dataclasses.fields(self.adds))
        return own + self.others


def ends_with(path: tuple[str, ...], endings: tuple[str, ...]) -> bool:
    """Whether a module's path ends in one of the names, such as "query" or "attention/out"."""
    return any(path[-len(e.split("/")) :] == tuple(e.split("/")) for e in endings)
