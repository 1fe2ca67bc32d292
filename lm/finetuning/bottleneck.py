"""Bottleneck adapters: a small feed-forward layer of its own in each block."""

import dataclasses
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from lm.config import Key
from lm.devices.cpu import dense_product
from lm.finetuning.method import Args, Call, Context, Kwargs
from lm.model.layers import FeedForward
from lm.model.multihead import MultiHeadAttention

PLACEMENTS = {
    "houlsby": (MultiHeadAttention, FeedForward),
    "pfeiffer": (FeedForward,),
    "parallel": (FeedForward,),
}
Placement = Annotated[str, Key("finetuning.adapter_placement", one_of=PLACEMENTS)]


class Bottleneck(nn.Module):
    """gelu(x W_down + b) W_up + c, [..., D] -> [..., D]; zero at first, as W_up and c are.

    Attributes:
      size: inner width.
    """

    size: int
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """See the class."""
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options["dot_general"] = dense_product
        inner = jax.nn.gelu(nn.Dense(self.size, name="down", **options)(x))
        zeros = nn.initializers.zeros
        return nn.Dense(x.shape[-1], kernel_init=zeros, name="up", **options)(inner)


@dataclasses.dataclass(frozen=True)
class BottleneckAdapter:
    """y + f(y) or y + f(x), with x and y a branch's inputs and outputs and f a bottleneck.

    Attributes:
      adapter_dim: the inner width of f, at least 1.
      adapter_placement: "houlsby": y + f(y) in every branch, attention and feed-forward
        (1902.00751); "pfeiffer": y + f(y) in the feed-forward ones (2005.00247); "parallel": y +
        f(x) there (2110.04366).
    """

    adapter_dim: Annotated[int, Key("finetuning.adapter_dim", at_least=1)] = 64
    adapter_placement: Placement = "houlsby"

    name: ClassVar[str] = "adapter"

    def __call__(self, call: Call, args: Args, kwargs: Kwargs, context: Context) -> jax.Array:
        """Adds to the branches of the placement; an interceptor of `flax.linen`."""
        y, branch = call(*args, **kwargs), context.module
        placed = isinstance(branch, PLACEMENTS[self.adapter_placement])
        if not placed or context.method_name != "__call__":
            return y
        dtypes = branch.config.numerics.dtypes
        added = Bottleneck(self.adapter_dim, **dtypes, name=self.name)
        return y + added(args[0] if self.adapter_placement == "parallel" else y)
