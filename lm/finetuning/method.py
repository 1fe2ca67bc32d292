"""Defines what a fine-tuning method is: the adapter that it adds to a model, and the parameters
that it trains, selected by their paths.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from flax.linen.module import InterceptorContext

# What an interceptor of `flax.linen` gets: the method that is called, its arguments, its module.
Call = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Context = InterceptorContext
Path = tuple[str, ...]  # the names on the way to a parameter or a module
# (path of a parameter, number of blocks that `layers` leaves alone) -> how many of its leading
# layers are frozen: 0 trains all, None freezes all. Only scanned layers have layers to count.
FrozenLayers = Callable[[Path, int], int | None]


class Adapter(Protocol):
    """Intercepts the calls of modules (`flax.linen.intercept_methods`) and adds modules to them.

    Attributes:
      name: that of all modules that it adds.
    """

    name: ClassVar[str]

    def __call__(self, call: Call, args: Args, kwargs: Kwargs, context: Context) -> Any:
        """The output of a module's method, with what the adapter adds."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
      frozen_layers: which parameters are trained; see `FrozenLayers`.
      adapter: the dataclass of what the method adds, built with its options; None: nothing.
      other_options: options that the method has besides those of its adapter.
    """

    frozen_layers: FrozenLayers
    adapter: Any = None
    other_options: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the method's options, keys of `config.finetuning`."""
        own = () if self.adapter is None else dataclasses.fields(self.adapter)
        return tuple(field.name for field in own) + self.other_options


def ends_with(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether a module's path ends in one of the names, such as "query" or "attention/out"."""
    return any(path[-len(e.split("/")) :] == tuple(e.split("/")) for e in endings)


HEADS = ("head", "transform", "pool", "read")


def everything(path: Path, frozen_blocks: int) -> int | None:
    """All parameters: plain fine-tuning."""
    return 0


def head(path: Path, frozen_blocks: int) -> int | None:
    """What reads the stack's hidden states: output head, transform, pooler, task's readout.

    A table that is tied to the embedding belongs to the model and is not trained.
    """
    return 0 if path[0] in HEADS else None


def top_layers(path: Path, frozen_blocks: int) -> int | None:
    """The last `finetuning.num_layers` blocks of every stack, its final norm, and the head
    (1911.03090).

    Scanned layers are stacked in one array, of which the last are trained; its gradient is computed
    whole and the first part dropped.
    """
    if path[0] not in ("stack", "encoder"):
        return head(path, frozen_blocks)
    if path[1] == "layers":
        return frozen_blocks
    if path[1].startswith("layer_"):
        return 0 if int(path[1].removeprefix("layer_")) >= frozen_blocks else None
    return 0


def biases(path: Path, frozen_blocks: int) -> int | None:
    """Every bias, of matrices, norms and head (BitFit, 2106.10199)."""
    return 0 if path[-1] == "bias" and softmaxes(path, frozen_blocks) is None else None


def norms(path: Path, frozen_blocks: int) -> int | None:
    """Scales and biases of the norms (2003.00152, for Transformers 2103.05247)."""
    return 0 if len(path) > 1 and path[-2].endswith("norm") else None


def softmaxes(path: Path, frozen_blocks: int) -> int | None:
    """The parameters of attention's weighting: alpha, scale, cap, sink, lambda."""
    return 0 if len(path) > 1 and path[-2] in ("mechanism", "scores") else None


def under(name: str) -> FrozenLayers:
    """The parameters of the modules of this name, which a method has added."""
    return lambda path, _: 0 if any(x.startswith(name) for x in path[:-1]) else None
