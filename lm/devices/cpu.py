"""What is there for CPUs alone, each piece with the benchmark figure that it is kept for.

Figures are ratios of processor time without the piece to that with it, interleaved, on 2 cores with
JAX 0.10.2; training is a step of 4 layers, D = 256, 8 rows of 256, V = 256.
"""

import ctypes
import importlib.util
import sys
from typing import TypeVar

import jax
from jax.custom_derivatives import SymbolicZero

from lm.devices.platform import platform
from lm.devices.sharding import sequence_parts

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def fusion_barrier(x: T) -> T:
    """The same value, computed once and stored, on a CPU; nothing elsewhere.

    XLA's CPU backend takes slices of a top-k for those of a full sort where it may fuse them: the
    weighting `top_k` takes 27 times as long without a barrier, forward and backward, [1024, 4096].
    In norms and for attention's keys it keeps the order of rounding, so that tables repeat to the
    last digit, and in products the form that is written. Elsewhere barriers made up 2 % of a
    training step together, and are gone.
    """
    return jax.lax.optimization_barrier(x) if platform() == "cpu" else x


def dense_product(inputs: jax.Array, kernel: jax.Array, *_: object, **__: object) -> jax.Array:
    """[..., in] x [in, out] -> [..., out], also as the `dot_general` of `flax.linen.Dense`.

    On a CPU all positions become one axis first: the kernel's gradient, a sum over positions, then
    contracts one axis, where two would make XLA's CPU backend copy its operands transposed.
    Training: 1.30 (1.20 at V = 8,192). A kernel that is not differentiated costs no product, and
    its inputs are not kept. Not where the mesh splits positions: as a part of one axis with the
    rows they could not stay split, and every device would gather and compute all of them.
    """
    if platform() != "cpu" or sequence_parts() > 1:
        return inputs @ kernel
    flat = _product(inputs.reshape(-1, inputs.shape[-1]), kernel)
    return flat.reshape(*inputs.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def _product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return inputs @ kernel


def _product_forward(inputs, kernel):
    kept = inputs.value if kernel.perturbed else None, kernel.value if inputs.perturbed else None
    return inputs.value @ kernel.value, kept


def _product_backward(saved, gradient):
    inputs, kernel = saved
    if isinstance(gradient, SymbolicZero):
        return None, None
    inputs_grad = None if kernel is None else gradient @ kernel.T
    if inputs is None:
        return inputs_grad, None
    if inputs.shape[1] > gradient.shape[1]:
        # A tall result is slower than its transpose and a copy: 1.03 of the above.
        return inputs_grad, fusion_barrier(gradient.T @ inputs).T
    return inputs_grad, inputs.T @ gradient


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def few_rows(rows: jax.Array) -> bool:
    """Whether `rows` [N, D] meet a table [V, D] faster as (table rows^T)^T than as rows table^T.

    On a CPU up to 64 do, with the result behind a `fusion_barrier`, as XLA would turn the product
    round again. Decoding for 8 prompts: 1.09 (4 layers, D = 768, V = 16,384).
    """
    return platform() == "cpu" and len(rows) <= 64


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks, where JAX has no accelerator; before threads start.

    A step on a CPU takes and frees hundreds of megabytes. By default glibc maps such blocks anew
    each time, and the kernel clears every page of them again. Wall time of training: 1.20 at
    V = 256, 1.07 at V = 32,000 (experiments/training_step.py).
    """
    accelerators = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
    if sys.platform != "linux" or any(map(importlib.util.find_spec, accelerators)):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # Another C library, such as musl.
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
