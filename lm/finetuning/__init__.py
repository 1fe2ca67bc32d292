"""What does fine-tuning add to a model, and which parameters does it train? `METHODS` maps every
method's name to both; names joined by "+" are methods used together.

Adding a method is a predicate over parameters, a class that intercepts modules if it adds any, and
an entry in the table below.
"""

import dataclasses
from typing import Any

from flax.traverse_util import flatten_dict

from lm.attention.scores import ANNEALED
from lm.config import Config, chosen_options
from lm.finetuning import choice
from lm.finetuning.adapter import Adapter
from lm.finetuning.ia3 import Ia3
from lm.finetuning.lora import Dora, Lora, RankStableLora
from lm.finetuning.method import Method
from lm.finetuning.prompt import Prefix, Prompt
from lm.finetuning.subset import count, join, split

METHODS: dict[str, Method] = {
    "full": Method(choice.everything),
    "head": Method(choice.head),
    "layers": Method(choice.top_layers, others=("num_layers",)),
    "bitfit": Method(choice.biases),
    "norms": Method(choice.norms),
    "softmax": Method(choice.softmaxes),
    "lora": Method(choice.under(Lora.name), Lora),
    "rslora": Method(choice.under(Lora.name), RankStableLora),
    "dora": Method(choice.under(Lora.name), Dora),
    "adapter": Method(choice.under(Adapter.name), Adapter),
    "prompt": Method(choice.under(Prompt.name), Prompt),
    "prefix": Method(choice.under(Prefix.name), Prefix),
    "ia3": Method(choice.under(Ia3.name), Ia3),
}


FIXED = ("method", "adapter_from")  # knobs of config.finetuning that are no method's options


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The methods of a config.

    Attributes:
      config: the whole config.
      names: of the methods.
      additions: what they add, for `TunedTransformer`.
    """

    config: Config
    names: tuple[str, ...]
    additions: tuple[Any, ...]

    def kept(self, path: tuple[str, ...]) -> int | None:
        """How many leading layers of a parameter are frozen; 0: none, None: all of it.

        What a schedule moves is none of a method's, and never frozen.
        """
        if path[-1].startswith(ANNEALED):
            return 0
        found = [METHODS[name].trains(path, self.config) for name in self.names]
        return min((first for first in found if first is not None), default=None)

    def trained(self, params: Any) -> dict[str, list[str]]:
        """Of every method, the names of the parameters that it trains in a tree of them."""
        paths = list(flatten_dict(params))
        return {
            name: ["/".join(p) for p in paths if METHODS[name].trains(p, self.config) is not None]
            for name in self.names
        }


def tuning(config: Config) -> Tuning:
    """The methods that a config names, built with its options."""
    names = method_names(config)
    chosen, additions = chosen_options(config.finetuning, FIXED), []
    for method in (METHODS[name] for name in names):
        if method.adds is not None:
            own = {field.name for field in dataclasses.fields(method.adds)} & set(chosen)
            options = {key: _frozen(chosen[key]) for key in own}
            additions.append(method.adds(**options))
    return Tuning(config, names, tuple(additions))


def method_names(config: Config) -> tuple[str, ...]:
    """The names in `config.finetuning.method`."""
    return tuple(config.finetuning.method.split("+"))


def room(config: Config) -> int:
    """Positions that are left for a text; see `lm.finetuning.tuned.room_of`."""
    own = config.finetuning.num_virtual_tokens or Prompt.num_virtual_tokens
    return config.model.max_seq_len - (own if "prompt" in method_names(config) else 0)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


__all__ = [
    "FIXED",
    "METHODS",
    "Method",
    "Tuning",
    "count",
    "join",
    "method_names",
    "room",
    "split",
    "tuning",
]
