"""JAX's operations by element as ONNX nodes: `ELEMENTWISE` by the name of the primitive.

Each takes the graph, the names of the operands, the type of the first and the equation's
parameters, and returns the name of the result.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.checkpoints.export.jaxpr_to_onnx.graph import Graph

Params = Mapping[str, Any]  # of an equation
Maker = Callable[[Graph, Sequence[str], np.dtype, Params], str]


def _node(op: str, graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    return graph.add(op, x)


def _not_equal(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    return graph.add("Not", [graph.add("Equal", x)])


def _logical(op: str, graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    return graph.add(op if dtype.kind == "b" else f"Bitwise{op}", x)


def _extremum(op: str, graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    if dtype.kind == "b":
        return graph.add("Or" if op == "Max" else "And", x)
    return graph.add(op, x)


def _rsqrt(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    return graph.add("Reciprocal", [graph.add("Sqrt", x)])


def _expm1(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    """tanh(x / 2) (e^x + 1), which keeps the digits of a small x."""
    half = graph.add("Mul", [*x, graph.constant(np.array(0.5, dtype))])
    more = graph.add("Add", [graph.add("Exp", x), graph.constant(np.array(1, dtype))])
    return graph.add("Mul", [graph.add("Tanh", [half]), more])


def _log1p(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    """2 atanh(x / (2 + x)) of a small x, which keeps its digits, and log(1 + x) of others."""
    one, two = (graph.constant(np.array(n, dtype)) for n in (1, 2))
    small = graph.add("Less", [graph.add("Abs", x), graph.constant(np.array(0.5, dtype))])
    inner = graph.add("Where", [small, *x, graph.constant(np.array(0, dtype))])
    ratio = graph.add("Div", [inner, graph.add("Add", [inner, two])])
    series = graph.add("Mul", [graph.add("Atanh", [ratio]), two])
    return graph.add("Where", [small, series, graph.add("Log", [graph.add("Add", [*x, one])])])


def _is_finite(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    odd = graph.add("Or", [graph.add("IsInf", x), graph.add("IsNaN", x)])
    return graph.add("Not", [odd])


def _square(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    return graph.add("Mul", [x[0], x[0]])


def _integer_pow(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    if params["y"] == 2:
        return _square(graph, x, dtype, params)
    return graph.add("Pow", [*x, graph.constant(np.array(params["y"], dtype))])


def _erfc(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    return graph.add("Sub", [graph.constant(np.array(1, dtype)), graph.add("Erf", x)])


def _remainder(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    """With the sign of the dividend, as C has it."""
    return graph.add("Mod", x, fmod=1)


def _select(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    which, otherwise, chosen = x
    if dtype.kind == "b":  # runtimes have Where of numbers alone
        kept = graph.add("And", [graph.add("Not", [which]), otherwise])
        return graph.add("Or", [graph.add("And", [which, chosen]), kept])
    return graph.add("Where", [which, chosen, otherwise])


def _clamp(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    low, value, high = x
    return graph.add("Min", [graph.add("Max", [value, low]), high])


def _convert(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    return graph.cast(x[0], params["new_dtype"])


def _same(graph: Graph, x: Sequence[str], dtype: np.dtype, params: Params) -> str:
    return x[0]


_NODES = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tan": "Tan",
    "tanh": "Tanh",
}
ELEMENTWISE: dict[str, Maker] = {
    **{name: functools.partial(_node, op) for name, op in _NODES.items()},
    "and": functools.partial(_logical, "And"),
    "or": functools.partial(_logical, "Or"),
    "xor": functools.partial(_logical, "Xor"),
    "not": functools.partial(_logical, "Not"),
    "max": functools.partial(_extremum, "Max"),
    "min": functools.partial(_extremum, "Min"),
    "clamp": _clamp,
    "convert_element_type": _convert,
    "copy": _same,
    "copy_p": _same,
    "erfc": _erfc,
    "expm1": _expm1,
    "integer_pow": _integer_pow,
    "is_finite": _is_finite,
    "log1p": _log1p,
    "ne": _not_equal,
    "optimization_barrier": _same,
    "rem": _remainder,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "square": _square,
    "stop_gradient": _same,
}
