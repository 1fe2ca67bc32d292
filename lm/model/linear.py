"""How are matrices applied? As two-dimensional products, their gradients suited to a CPU too, and
their numbers lying as products of few rows read them where a model decodes on one.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.custom_derivatives import SymbolicZero

from lm.devices.cpu import fusion_barrier
from lm.devices.platform import platform

_TURNED = "turned_kernel"  # [..., out, in], in the place of "kernel" [..., in, out]
_FEW = 64
_BLOCKS = ("attention", "cross_attention", "feed_forward")


class Dense(nn.Dense):
    """x W + b: `flax.linen.Dense` by `flat_product`, which also takes a kernel that was `turned`.

    [..., in] -> [..., out]; the same parameters, and the same values at the start.
    """

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """See the class."""
        own = self.variables.get("params", {})
        if _TURNED in own:
            kernel = jnp.asarray(own[_TURNED]).T
        else:
            shape = (inputs.shape[-1], self.features)
            kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        outputs = (_turned_product if _TURNED in own else flat_product)(inputs, kernel)
        return outputs if bias is None else outputs + bias


def flat_product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., in] x [in, out] -> [..., out].

    All positions become one axis first: the kernel's gradient, a sum over positions, then
    contracts one axis, where two would make XLA's CPU backend copy its operands transposed.
    A kernel that is not differentiated costs no product, and its inputs are not kept.
    """
    flat = _product(inputs.reshape(-1, inputs.shape[-1]), kernel)
    return flat.reshape(*inputs.shape[:-1], kernel.shape[1])


def turned(params: Any) -> Any:
    """The same parameters as a model that decodes on a CPU reads them fastest; elsewhere, as given.

    Every matrix W [in, out] of attention and feed-forward layers lies as W^T [out, in], for which
    XLA's products with few rows take three quarters of the time. What something is added to while
    the model runs (an adapter) stays as it is. `Dense` reads either; nothing else reads these.
    """
    if platform() != "cpu":
        return params
    flat: dict[Any, Any] = flatten_dict(params)
    layers: dict[Any, set[str]] = {}
    for path in flat:
        layers.setdefault(path[:-1], set()).add(path[-1])
    beside = {path[:-1] for path in layers}  # layers with something inside them
    for path, names in layers.items():
        plain = "kernel" in names and path not in beside
        if plain and len(path) > 1 and path[-2] in _BLOCKS:
            flat[*path, _TURNED] = jnp.swapaxes(flat.pop((*path, "kernel")), -1, -2)
    return unflatten_dict(flat)


def are_few(rows: jax.Array) -> bool:
    """Whether rows [N, in] meet a matrix M [out, in] faster as (M rows^T)^T than as rows M^T.

    On a CPU up to 64 do; one row takes a quarter of the time in JAX 0.12. XLA turns such a product
    round again unless it is materialised.
    """
    return len(rows) <= _FEW and platform() == "cpu"


def _turned_product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    flat = inputs.reshape(-1, inputs.shape[-1])
    if not are_few(flat):
        return flat_product(inputs, kernel)
    return fusion_barrier(kernel.T @ flat.T).T.reshape(*inputs.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def _product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return inputs @ kernel


def _forward(inputs, kernel):
    kept = inputs.value if kernel.perturbed else None, kernel.value if inputs.perturbed else None
    return inputs.value @ kernel.value, kept


def _backward(saved, gradient):
    inputs, kernel = saved
    if isinstance(gradient, SymbolicZero):
        return None, None
    of_inputs = None if kernel is None else gradient @ kernel.T
    if inputs is None:
        return of_inputs, None
    if inputs.shape[1] > gradient.shape[1]:
        # A tall result is a third slower there than its transpose and a copy.
        return of_inputs, fusion_barrier(gradient.T @ inputs).T
    return of_inputs, inputs.T @ gradient


_product.defvjp(_forward, _backward, symbolic_zeros=True)
