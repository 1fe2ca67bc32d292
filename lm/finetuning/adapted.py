"""A Transformer with adapters, which intercept the calls of its modules."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
from flax.linen.module import Interceptor

from lm.finetuning.prompt import Prompt
from lm.model.transformer import Batch, Transformer


class AdaptedTransformer(Transformer):
    """A Transformer whose modules' calls are intercepted, such as by the adapters of `METHODS`.

    The base's parameters keep their names and initial values; what is added has names below those
    of the modules that it is added to.

    Attributes:
      interceptors: for `flax.linen.intercept_methods`; the first is the outermost.
    """

    interceptors: tuple[Interceptor, ...] = ()

    @nn.compact
    def __call__(self, batch: Batch, *args: Any, **kwargs: Any) -> jax.Array:
        """See `Transformer`."""
        with contextlib.ExitStack() as interception:
            for interceptor in self.interceptors:
                interception.enter_context(nn.intercept_methods(interceptor))
            return super().__call__(batch, *args, **kwargs)


def max_text_len_of(model: Transformer) -> int:
    """Positions that are left for a text, before which virtual tokens (method prompt) stand."""
    added = model.interceptors if isinstance(model, AdaptedTransformer) else ()
    virtual = sum(x.num_virtual_tokens for x in added if isinstance(x, Prompt))
    return model.config.embedding.max_seq_len - virtual
