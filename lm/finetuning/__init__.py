"""Says what fine-tuning adds to a model and which parameters it trains. `METHODS` maps the name of
every method to both; names joined by "+" are methods used together.

Adding a method is a function that selects its parameters, a class that intercepts modules if it
adds any, and an entry in the table below.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from flax.traverse_util import flatten_dict

from lm.attention.scores import ANNEALED
from lm.config import Config, Key, chosen_options, frozen, typed
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
class FinetuningConfig:
    """What fine-tuning adds to a model, and which parameters it trains.

    Attributes:
      methods: their names.
      adapters: what they add, with their options, for `AdaptedTransformer`.
      target_modules: what the config names of matrices to adapt; None: nothing.
      frozen_blocks: how many of the first blocks method `layers` leaves alone.
    """

    methods: Annotated[tuple[str, ...], Key("finetuning.method")]
    adapters: tuple[Adapter, ...]
    target_modules: Annotated[tuple[str, ...] | None, Key("finetuning.target_modules")]
    frozen_blocks: Annotated[int, Key("finetuning.num_layers", at_least=1)]

    def frozen_layers(self, path: Path) -> int | None:
        """How many leading layers of a parameter are frozen; 0: none, None: all of it.

        What a schedule moves belongs to no method, and is never frozen.
        """
        if path[-1].startswith(ANNEALED):
            return 0
        found = [METHODS[name].frozen_layers(path, self.frozen_blocks) for name in self.methods]
        return min((layers for layers in found if layers is not None), default=None)

    def trains(self, method: str, params: Mapping[str, Any]) -> bool:
        """Whether one of the methods trains any of these parameters."""
        frozen = METHODS[method].frozen_layers
        return any(frozen(path, self.frozen_blocks) is not None for path in flatten_dict(params))


def finetuning_config(config: Config) -> FinetuningConfig:
    """The methods that a config names, built with its options."""
    names, adapters = method_names(config), []
    options = chosen_options(config.finetuning, NO_OPTIONS)
    for adapter in (METHODS[name].adapter for name in names):
        if adapter is not None:
            own = options.keys() & {field.name for field in dataclasses.fields(adapter)}
            adapters.append(adapter(**{key: frozen(options[key]) for key in own}))
    blocks = config.model.num_layers - (config.finetuning.num_layers or 1)
    built = {"methods": names, "adapters": tuple(adapters), "frozen_blocks": blocks}
    return typed(FinetuningConfig, config, **built)


def method_names(config: Config) -> tuple[str, ...]:
    """The names in `config.finetuning.method`."""
    return tuple(config.finetuning.method.split("+"))


def max_text_len(config: Config) -> int:
    """Positions that are left for a text; see `lm.finetuning.adapted.max_text_len_of`."""
    own = config.finetuning.num_virtual_tokens or Prompt.num_virtual_tokens
    return config.model.max_seq_len - (own if "prompt" in method_names(config) else 0)


__all__ = [
    "METHODS",
    "NO_OPTIONS",
    "FinetuningConfig",
    "Method",
    "combine",
    "finetuning_config",
    "max_text_len",
    "method_names",
    "param_count",
    "partition",
]
