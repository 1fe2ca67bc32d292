"""Counts the FLOPs of a token: the matrix products of the traced program."""

import math
from typing import Any

import jax
import jax.extend

from lm.devices.accelerators import accelerator_of
from lm.devices.sharding import as_cpus
from lm.training.program import Program


def flops_per_token(program: Program) -> float:
    """FLOPs of matrix products per token of a row in training: three times the forward pass.

    Counts 2 m n k for each product [m, k] x [k, n] in the traced forward pass, scans as often as
    they run; the backward pass has two products for each, and recomputation (remat, blocks) is not
    counted, as usual for model FLOPs. Attention counts as the whole square, whatever parts of it a
    device skips, so that figures compare. Elementwise work is left out.

    The pass is that of CPUs, whatever the devices: a kernel shows no products.
    """
    rows = program.objective.abstract_rows(1)
    with as_cpus():
        traced = jax.make_jaxpr(program.token_nll)(program.abstract_params, rows)
    # A row of a choice holds several texts.
    return 3.0 * _products(traced.jaxpr) / rows["segments"].size


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices together; None where the kind is not in `ACCELERATORS`."""
    known = accelerator_of(jax.devices()[0].device_kind)
    return None if known is None else known.peak_flops * jax.device_count()


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
            continue
        inner = [_products(sub) for sub in jax.extend.core.jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner, default=0.0)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total
