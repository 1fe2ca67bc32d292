"""Drops parts of a model at random in training: residual branches of rows, and tokens."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext as Context

from lm.model.embedding import Embedding
from lm.model.layers import Block


@dataclasses.dataclass(frozen=True)
class StochasticDepth:
    """x + f(x) / (1 - p) for a share 1 - p of the rows, and x for the others (1603.09382).

    Drawn for every residual branch by itself, with one rate for all layers.

    Attributes:
      rate: p.
    """

    rate: float

    def __call__(self, call: Callable, args: tuple, kwargs: dict, context: Context) -> Any:
        """Scales what blocks add to the residual stream; an interceptor of `flax.linen`."""
        y, module = call(*args, **kwargs), context.module
        block = module.parent if isinstance(module, nn.Dropout) else None
        if not isinstance(block, Block) or not block.has_rng("dropout"):
            return y
        # The block's own stream, which dropout does not draw from: what else is on moves nothing.
        keep = jax.random.bernoulli(block.make_rng("dropout"), 1.0 - self.rate, (len(y), 1, 1))
        return jnp.where(keep, y / (1.0 - self.rate), 0.0).astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class WordDropout:
    """Words whose vectors are zero, while their places stay (Iyyer et al., ACL 2015).

    Attributes:
      rate: their share.
    """

    rate: float

    def __call__(self, call: Callable, args: tuple, kwargs: dict, context: Context) -> Any:
        """Takes words out of what is embedded; an interceptor of `flax.linen`."""
        module = context.module
        inside = isinstance(module, Embedding) and context.method_name == "__call__"
        if not inside or not module.has_rng("dropout"):
            return call(*args, **kwargs)
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        words = given["words"]
        keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - self.rate, words.shape[:2])
        given["words"] = jnp.where(keep[..., None], words, jnp.zeros_like(words))
        return call(**given)
