"""What if activations are only made larger or smaller? Learned scales inside every block."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax

from lm.tune.method import ends_with


class Scale(nn.Module):
    """l * x over the last axis; l from ones."""

    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        return x * scale.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Ia3:
    """l_k * keys, l_v * values, and l_f * what the feed-forward layer's last matrix reads
    (2205.05638).
    """

    name: ClassVar[str] = "ia3"

    def __call__(self, call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        """Scales what goes into or out of the dense layers; an interceptor of `flax.linen`."""
        layer = context.module
        if not isinstance(layer, nn.Dense):
            return call(*arguments, **keywords)
        if ends_with(layer.path, ("feed_forward/out",)):
            return call(Scale(layer.param_dtype, name=self.name)(*arguments), **keywords)
        y = call(*arguments, **keywords)
        if ends_with(layer.path, ("key", "value")):
            y = Scale(layer.param_dtype, name=self.name)(y)
        return y
