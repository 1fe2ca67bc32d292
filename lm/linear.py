"""How are matrices applied? As two-dimensional products, their gradients suited to a CPU too."""

from typing import Any

import jax

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
    """
    del dimension_numbers, precision, preferred_element_type
    flat = _product(inputs.reshape(-1, inputs.shape[-1]), kernel)
    return flat.reshape(*inputs.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def _product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return inputs @ kernel


def _forward(inputs, kernel):
    return inputs @ kernel, (inputs, kernel)


def _backward(saved, gradient):
    inputs, kernel = saved
    if inputs.shape[1] > gradient.shape[1]:
        # A tall result is a third slower there than its transpose and a copy.
        of_kernel = materialise(gradient.T @ inputs).T
    else:
        of_kernel = inputs.T @ gradient
    return gradient @ kernel.T, of_kernel


_product.defvjp(_forward, _backward)
