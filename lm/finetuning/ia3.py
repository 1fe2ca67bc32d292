"""IA3: learned scales of activations inside every block."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from lm.finetuning.method import Args, Call, Context, Kwargs, Path, ends_with


class Scale(nn.Module):
    """l * x over the last axis; l from ones."""

    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        return x * scale.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Ia3:
    """l_k * keys, l_v * values, l_f * what the last feed-forward matrix reads (2205.05638)."""

    name: ClassVar[str] = "ia3"

    def __call__(self, call: Call, args: Args, kwargs: Kwargs, context: Context) -> jax.Array:
        """Scales what goes into or out of the dense layers; an interceptor of `flax.linen`."""
        layer = context.module
        if not isinstance(layer, nn.Dense):
            return call(*args, **kwargs)
        if ends_with(layer.path, ("feed_forward/out",)):
            return call(Scale(layer.param_dtype, name=self.name)(*args), **kwargs)
        y = call(*args, **kwargs)
        scaled = ends_with(layer.path, ("key", "value"))
        return Scale(layer.param_dtype, name=self.name)(y) if scaled else y

    def merged(self, path: Path, layer: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a layer that alone does what this one and its scale do."""
        return self._scaled(path, layer, layer[self.name]["scale"], kept=False)

    def unmerged(self, path: Path, layer: Mapping[str, Any]) -> dict[str, Any]:
        """The layer and its scale again, of the merged layer and the scale."""
        return self._scaled(path, layer, 1.0 / layer[self.name]["scale"], kept=True)

    def _scaled(
        self, path: Path, layer: Mapping[str, Any], scale: jax.Array, kept: bool
    ) -> dict[str, Any]:
        new = {name: leaf for name, leaf in layer.items() if kept or name != self.name}
        if path[-2:] == ("feed_forward", "out"):
            return new | {"kernel": layer["kernel"] * scale[..., :, None]}
        if "bias" in layer:
            new["bias"] = layer["bias"] * scale
        return new | {"kernel": layer["kernel"] * scale[..., None, :]}
