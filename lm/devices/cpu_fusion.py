"""Which intermediates are worth a pass through memory? On a CPU, those that several others read."""

from typing import TypeVar

import jax

T = TypeVar("T")


def materialise(x: T) -> T:
    """The same value, computed once and stored, on a CPU; nothing elsewhere.

    XLA's CPU backend fuses a cheap-looking producer into each of its consumers, and so computes
    exponentials, tanh and norms several times over. A barrier, which also stands in the backward
    pass, stops that. GPU and TPU compilers fuse well and lose by it.
    """
    return jax.lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x
