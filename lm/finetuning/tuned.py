"""How does a model take what a method adds? Every call of its modules passes by the additions."""

import contextlib
from typing import Any

import flax.linen as nn
import jax

from lm.finetuning.prompt import Prompt
from lm.model.transformer import Batch, Transformer


class TunedTransformer(Transformer):
    """A Transformer whose modules' calls are intercepted by additions of `METHODS`.

    The base's parameters keep their names and initial values; what is added has names below those
    of the modules that it is added to.

    Attributes:
      additions: interceptors (`flax.linen.intercept_methods`); the first is the outermost.
    """

    additions: tuple[Any, ...] = ()

    @nn.compact
    def __call__(self, batch: Batch, *arguments: Any, **keywords: Any) -> jax.Array:
        """See `Transformer`."""
        with contextlib.ExitStack() as interception:
            for addition in self.additions:
                interception.enter_context(nn.intercept_methods(addition))
            return super().__call__(batch, *arguments, **keywords)


def room_of(model: Transformer) -> int:
    """Positions that are left for a text: learned words (method prompt) stand before it."""
    added = model.additions if isinstance(model, TunedTransformer) else ()
    return model.max_seq_len - sum(x.num_virtual_tokens for x in added if isinstance(x, Prompt))
