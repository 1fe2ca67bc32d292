"""Products of 8-bit integers: activations are quantized as they come."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.finetuning.method import Args, Call, Context, Kwargs


@dataclasses.dataclass(frozen=True)
class DynamicInt8:
    """Computes linear layers of a model's stack as products of 8-bit integers.

    With x_q = round(x / s_x) of each token, s_x = max |x| / 127, and W_q likewise of each output,

        y = (x_q W_q) s_x s_W + b,

    the product summed in 32-bit integers. An interceptor of `flax.linen`.
    """

    def __call__(self, call: Call, args: Args, kwargs: Kwargs, context: Context) -> jax.Array:
        """Takes the place of calls of `flax.linen.Dense`."""
        module = context.module
        if not isinstance(module, nn.Dense) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if module.is_initializing():
            return call(*args, **kwargs)
        own = module.variables["params"]
        return int8_product(args[0], own["kernel"], own.get("bias"))


def int8_product(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """X [..., D] times kernel [D, E], plus bias [E]; see `DynamicInt8`."""
    x_q, x_scale = _quantized(x, axis=-1)
    w_q, w_scale = _quantized(kernel, axis=0)
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    sums = jax.lax.dot_general(x_q, w_q, contract, preferred_element_type=jnp.int32)
    y = sums.astype(jnp.float32) * x_scale * w_scale
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)


def _quantized(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127.0
    q = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
    return jnp.clip(q, -127, 127).astype(jnp.int8), scale
