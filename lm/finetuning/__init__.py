"""Says what fine-tuning adds to a model and which parameters it trains. `METHODS` maps the name of
every method to both; names joined by "+" are methods used together.

Adding a method is a function that selects its parameters, a class that intercepts modules if it
adds any, and an entry in the table below.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from lm.attention.scores import ANNEALED
from lm.config import Config, chosen_options
from lm.finetuning import method
from lm.finetuning.bottleneck import BottleneckAdapter
from lm.finetuning.ia3 import Ia3
from lm.finetuning.lora import Dora, Lora, RankStableLora
from lm.finetuning.method import Adapter, Method, Path
from lm.finetuning.partition import combine, param_count, partition
from lm.finetuning.prompt import Prefix, Prompt

METHODS: dict[str, Method] = {
    "full": Method(method.everything),
    "head": Method(method.head),
    "layers": Method(method.top_layers, other_options=("num_layers",)),
    "bitfit": Method(method.biases),
    "norms": Method(method.norms),
    "softmax": Method(method.softmaxes),
    "lora": Method(method.under(Lora.name), Lora),
    "rslora": Method(method.under(Lora.name), RankStableLora),
    "dora": Method(method.under(Lora.name), Dora),
    "adapter": Method(method.under(BottleneckAdapter.name), BottleneckAdapter),
    "prompt": Method(method.under(Prompt.name), Prompt),
    "prefix": Method(method.under(Prefix.name), Prefix),
    "ia3": Method(method.under(Ia3.name), Ia3),
}
NO_OPTIONS = ("method", "adapter_from")  # keys of config.finetuning that are no method's options


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """The methods of a config.

    Attributes:
      config: the whole config.
      methods: their names.
      adapters: what they add, for `AdaptedTransformer`.
    """

    config: Config
    methods: tuple[str, ...]
    adapters: tuple[Adapter, ...]

    def frozen_layers(self, path: Path) -> int | None:
        """How many leading layers of a parameter are frozen; 0: none, None: all of it.

        What a schedule moves belongs to no method, and is never frozen.
        """
        if path[-1].startswith(ANNEALED):
            return 0
        found = [METHODS[name].frozen_layers(path, self.config) for name in self.methods]
        return min((layers for layers in found if layers is not None), default=None)

    def trained_names(self, params: Mapping[str, Any]) -> dict[str, list[str]]:
        """Of every method, the names of the parameters that it trains in a tree of them."""
        selected = {name: METHODS[name].frozen_layers for name in self.methods}
        return {
            name: ["/".join(p) for p in flatten_dict(params) if frozen(p, self.config) is not None]
            for name, frozen in selected.items()
        }


def build_finetuning(config: Config) -> FineTuning:
    """The methods that a config names, built with its options."""
    names = method_names(config)
    chosen, adapters = chosen_options(config.finetuning, NO_OPTIONS), []
    for adapter in (METHODS[name].adapter for name in names):
        if adapter is not None:
            own = {field.name for field in dataclasses.fields(adapter)} & set(chosen)
            adapters.append(adapter(**{key: _hashable(chosen[key]) for key in own}))
    return FineTuning(config, names, tuple(adapters))


def method_names(config: Config) -> tuple[str, ...]:
    """The names in `config.finetuning.method`."""
    return tuple(config.finetuning.method.split("+"))


def max_text_len(config: Config) -> int:
    """Positions that are left for a text; see `lm.finetuning.adapted.max_text_len_of`."""
    own = config.finetuning.num_virtual_tokens or Prompt.num_virtual_tokens
    return config.model.max_seq_len - (own if "prompt" in method_names(config) else 0)


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


__all__ = [
    "METHODS",
    "NO_OPTIONS",
    "FineTuning",
    "Method",
    "build_finetuning",
    "combine",
    "max_text_len",
    "method_names",
    "param_count",
    "partition",
]
