"""How are matrices applied? As two-dimensional products, their gradients suited to a CPU too."""

from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from lm.materialise import materialise


def flat_product(
    inputs: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jax.lax.dot_general` for [..., in] x [in, out]: a hook for `flax.linen.Dense`.

    All positions become one axis first: the kernel's gradient, a sum over positions, then
    contracts one axis, where two would make XLA's CPU backend copy its operands transposed.
    A kernel that is not differentiated costs no product, and its inputs are not kept.
    """
    del dimension_numbers, precision, preferred_element_type
    flat = _product(inputs.reshape(-1, inputs.shape[-1]), kernel)
    return flat.reshape(*inputs.shape[:-1], kernel.shape[1])


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
        return of_inputs, materialise(gradient.T @ inputs).T
    return of_inputs, inputs.T @ gradient


_product.defvjp(_forward, _backward, symbolic_zeros=True)
