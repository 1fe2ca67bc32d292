"""Multiplies hidden states with the vocabulary's table, with gradients summed in float32."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.devices.cpu import few_rows, fusion_barrier


def _product(hidden: jax.Array, table: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Hidden [N, D] times table [V, D] to [N, V], operands in `dtype`, sums in float32 at least.

    The gradients are sums in float32 too, and are rounded only to the types of `hidden` and of
    `table`: a float32 table gets float32 gradients from bfloat16 products.
    """
    hidden, table = hidden.astype(dtype), table.astype(dtype)
    if table.dtype.itemsize >= 4 and few_rows(hidden):  # a CPU has no mixed product of that form
        return fusion_barrier(_dot("vd,nd->vn", table, hidden)).T
    return _dot("nd,vd->nv", hidden, table)


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=wide)


def _forward(hidden, table, dtype):
    return _product(hidden, table, dtype), (hidden, table)


def _backward(dtype, saved, grad):
    hidden, table = saved
    grad = grad.astype(dtype)
    hidden_grad = _dot("nv,vd->nd", grad, table.astype(dtype))
    if jnp.dtype(dtype).itemsize < 4:
        table_grad = _dot("nv,nd->vd", grad, hidden.astype(dtype))
    else:  # features x vocabulary, with its operands as they lie in memory: on a CPU loss and
        # gradients take 1.05 times as long where the transpose is fused (N = 2,048, V = 32,768)
        table_grad = _dot("dn,nv->dv", fusion_barrier(hidden.astype(dtype).T), grad).T
    return hidden_grad.astype(hidden.dtype), table_grad.astype(table.dtype)


product = jax.custom_vjp(_product, nondiff_argnums=(2,))
product.defvjp(_forward, _backward)
