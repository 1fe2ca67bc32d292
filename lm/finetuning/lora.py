"""LoRA, an update of low rank to a matrix, in its plain, rank-stable and decomposed (DoRA) form."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from lm.config import Key
from lm.devices.cpu import dense_product
from lm.errors import UserError, nearest
from lm.finetuning.method import Args, Call, Context, Kwargs, Path, ends_with


class LowRank(nn.Module):
    """What LoRA adds to a dense layer; it changes nothing at first, as B is zero.

    Attributes:
      rank: r; A is [in, r] and B [r, out].
      scale: what their product is multiplied by.
    """

    rank: int
    scale: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array, layer: Mapping[str, jax.Array]) -> jax.Array:
        """The layer's new output, [..., out], of its inputs, its output and its parameters."""
        return y + self.update(x, y.shape[-1])

    def update(self, x: jax.Array, features: int) -> jax.Array:
        """Scale (x A) B, [..., in] -> [..., out]; makes A, uniform within 1/sqrt(in), and B."""
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = self.param("a_kernel", init, (x.shape[-1], self.rank), self.param_dtype)
        zeros = nn.initializers.zeros
        b = self.param("b_kernel", zeros, (self.rank, features), self.param_dtype)
        dtype = self.dtype or jnp.result_type(x, a)
        x, a, b = (array.astype(dtype) for array in (x, a, b))
        return self.scale * dense_product(dense_product(x, a), b)


class Decomposed(LowRank):
    """What DoRA adds: besides `LowRank`, the growth d [out] of every column's length."""

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array, layer: Mapping[str, jax.Array]) -> jax.Array:
        """See `LowRank`."""
        update = self.update(x, y.shape[-1])
        self.param("growth", nn.initializers.zeros, y.shape[-1:], self.param_dtype)
        own = self.variables["params"]
        moved = layer["kernel"] + self.scale * own["a_kernel"] @ own["b_kernel"]
        moved = jax.lax.stop_gradient(moved)
        factor = lengths(layer["kernel"], own["growth"]) / jnp.linalg.norm(moved, axis=0)
        bias = layer["bias"].astype(y.dtype) if "bias" in layer else jnp.zeros((), y.dtype)
        return (y - bias + update) * factor.astype(y.dtype) + bias


def check_targets(targets: Iterable[str], *trees: Mapping[str, Any]) -> None:
    """Raises UserError where a target has added to no matrix in trees of parameters."""
    paths = [path for tree in trees if tree for path in flatten_dict(tree)]
    for target in targets:
        moved = (path[:-2] for path in paths if path[-1] == "a_kernel")
        if not any(ends_with(path, (target,)) for path in moved):
            names = sorted({path[-2] for path in paths if path[-1] == "kernel"})
            raise UserError(
                f"config.finetuning.target_modules has {target!r}, which is no matrix of this "
                f"model; it has {', '.join(names)}{nearest(target, names)}"
            )


def lengths(kernel: jax.Array, growth: jax.Array) -> jax.Array:
    """DoRA's m = |W| + d, [..., out], the lengths of the columns of W [..., in, out]."""
    return jnp.linalg.norm(kernel, axis=-2) + growth


@dataclasses.dataclass(frozen=True)
class Lora:
    """y = x W + b + (alpha / r) (x A) B, with A and B learned (Hu et al. 2106.09685).

    W is not trained, so that its gradient is never computed; merged, W + (alpha / r) A B costs
    nothing at all.

    Attributes:
      rank: r, at least 1.
      alpha: scales the update.
      target_modules: names of the matrices, such as "query", or "attention/out" where several are
        named "out".
    """

    rank: Annotated[int, Key("finetuning.rank", at_least=1)] = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] = ("query", "value")

    name: ClassVar[str] = "lora"
    module: ClassVar[type[LowRank]] = LowRank

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        return self.alpha / self.rank

    def __call__(self, call: Call, args: Args, kwargs: Kwargs, context: Context) -> jax.Array:
        """Adds to the dense layers that are targets; an interceptor of `flax.linen`."""
        y, layer = call(*args, **kwargs), context.module
        if not isinstance(layer, nn.Dense) or not ends_with(layer.path, self.target_modules):
            return y
        options = {"dtype": layer.dtype, "param_dtype": layer.param_dtype, "name": self.name}
        added: Any = self.module(rank=self.rank, scale=self.scale, **options)
        return added(*args, y, layer.variables["params"])

    def merged(self, path: Path, layer: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a layer that alone does what this one and its addition do."""
        plain = {name: leaf for name, leaf in layer.items() if name != self.name}
        return plain | {"kernel": self.kernel(layer["kernel"], layer[self.name])}

    def unmerged(self, path: Path, layer: Mapping[str, Any]) -> dict[str, Any]:
        """The layer and its addition again, of the merged layer and the addition."""
        return {**layer, "kernel": layer["kernel"] - self.update(layer[self.name])}

    def update(self, added: Mapping[str, jax.Array]) -> jax.Array:
        """(alpha / r) A B, [..., in, out]; also of stacked layers."""
        return self.scale * (added["a_kernel"] @ added["b_kernel"])

    def kernel(self, kernel: jax.Array, added: Mapping[str, jax.Array]) -> jax.Array:
        """The kernel [..., in, out] of the merged layer."""
        return kernel + self.update(added)


@dataclasses.dataclass(frozen=True)
class RankStableLora(Lora):
    """LoRA scaled by alpha / sqrt(r), which keeps large ranks learning (2312.03732)."""

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        return self.alpha / self.rank**0.5


@dataclasses.dataclass(frozen=True)
class Dora(Lora):
    """LoRA for the direction of every column of W, and its length learned apart (2402.09353).

    y = x W' + b with W' = (|W| + d) (W + (alpha / r) A B) / |W + (alpha / r) A B|, lengths |.| over
    the inputs, and d from zero; no gradient flows through the divisor.
    """

    module: ClassVar[type[LowRank]] = Decomposed

    unmerged: ClassVar[None] = None  # pyright: ignore  # the base's lengths are lost

    def kernel(self, kernel: jax.Array, added: Mapping[str, jax.Array]) -> jax.Array:
        """See `Lora.kernel`."""
        moved = kernel + self.update(added)
        factor = lengths(kernel, added["growth"]) / jnp.linalg.norm(moved, axis=-2)
        return moved * factor[..., None, :]
