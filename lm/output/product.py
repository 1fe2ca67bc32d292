"""How do hidden states meet the table of words? In one product, whose gradients stay in float32."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lm.devices.cpu import few_rows, fusion_barrier


def product(hidden: jax.Array, table: jax.Array, dtype: Any) -> jax.Array:
    """Hidden [N, D] times table [V, D] to [N, V], operands in `dtype`, sums in float32 at least.

    The gradients are sums in float32 too, and are rounded only to the types of `hidden` and of
    `table`: a float32 table gets float32 gradients from bfloat16 products.
    """
    result: Any = _product(hidden, table, dtype)
    return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(hidden, table, dtype):
    hidden, table = hidden.astype(dtype), table.astype(dtype)
    if table.dtype.itemsize >= 4 and few_rows(hidden):  # a CPU has no mixed product of that form
        return fusion_barrier(_dot("vd,nd->vn", table, hidden)).T
    return _dot("nd,vd->nv", hidden, table)


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=wide)


def _forward(hidden, table, dtype):
    return _product(hidden, table, dtype), (hidden, table)


def _backward(dtype, saved, gradient):
    hidden, table = saved
    gradient = gradient.astype(dtype)
    of_hidden = _dot("nv,vd->nd", gradient, table.astype(dtype))
    if jnp.dtype(dtype).itemsize < 4:
        of_table = _dot("nv,nd->vd", gradient, hidden.astype(dtype))
    else:  # features x words, with its operands as they lie in memory: a fifth faster on a CPU
        of_table = _dot("dn,nv->dv", fusion_barrier(hidden.astype(dtype).T), gradient).T
    return of_hidden.astype(hidden.dtype), of_table.astype(table.dtype)


_product.defvjp(_forward, _backward)
