"""JAX's operations on shapes, reductions and products as ONNX nodes: `SHAPED` by the name of the
primitive.

Each takes the graph, an equation of a jaxpr and the names of its operands in their whole shape,
and returns the value of the result.
"""

import functools
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lm.checkpoints.export.jaxpr_to_onnx.graph import Graph, Value

Equation = Any  # of a jaxpr; JAX does not say that its variables have shapes
Maker = Callable[[Graph, Equation, Sequence[str]], Value]
_FAR = 2**31 - 1  # beyond the end of any axis


class NoForm(Exception):
    """What of a primitive ONNX has no form for."""


def _broadcast(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    """Axes of size 1 are put in; operators by element lengthen them themselves."""
    (source,), (out,) = (v.aval.shape for v in eqn.invars[:1]), (v.aval.shape for v in eqn.outvars)
    placed: list[Any] = [1] * len(out)
    for axis, size in zip(eqn.params["broadcast_dimensions"], source, strict=True):
        placed[axis] = size
    name = x[0] if tuple(placed) == tuple(source) else graph.reshape(x[0], placed)
    return Value(name, whole=tuple(placed) == tuple(out))


def _iota(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    if isinstance(shape[axis], int):
        places = graph.constant(np.arange(shape[axis], dtype=eqn.params["dtype"]))
    else:
        zero, one = (graph.constant(np.array(n, np.int64)) for n in (0, 1))
        end = graph.reshape(graph.size(shape[axis]), ())
        places = graph.cast(graph.add("Range", [zero, end, one]), eqn.params["dtype"])
    lone = [size if i == axis else 1 for i, size in enumerate(shape)]
    return Value(places if len(shape) == 1 else graph.reshape(places, lone), whole=len(shape) == 1)


def _reshape(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    return Value(graph.reshape(x[0], eqn.outvars[0].aval.shape))


def _transpose(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    return Value(graph.add("Transpose", x, perm=list(eqn.params["permutation"])))


def _reverse(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    axes = list(eqn.params["dimensions"])
    back, whole = graph.numbers([-1] * len(axes)), graph.numbers([-_FAR] * len(axes))
    return Value(graph.add("Slice", [x[0], back, whole, graph.numbers(axes), back]))


def _slice(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    starts, ends = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = graph.numbers(eqn.params["strides"] or [1] * len(starts))
    axes = graph.numbers(range(len(starts)))
    return Value(graph.add("Slice", [x[0], graph.shape(starts), graph.shape(ends), axes, steps]))


def _dynamic_slice(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    sizes = eqn.params["slice_sizes"]
    return Value(_window(graph, x[0], eqn.invars[0].aval.shape, x[1:], sizes))


def _window(
    graph: Graph, name: str, shape: Sequence[Any], starts: Sequence[str], sizes: Sequence[Any]
) -> str:
    """The window of these sizes that begins at scalars, moved into the tensor where it juts out."""
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size == shape[axis]:
            continue
        at = graph.cast(graph.reshape(start, (1,)), np.int64)
        at = graph.add("Max", [at, graph.numbers([0])])
        at = graph.add("Min", [at, graph.size(shape[axis] - size)])
        end = graph.add("Add", [at, graph.size(size)])
        name = graph.add("Slice", [name, at, end, graph.numbers([axis])])
    return name


def _concatenate(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    return Value(graph.add("Concat", x, axis=eqn.params["dimension"]))


def _stack(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    axis = graph.numbers([eqn.params["axis"]])
    apart = [graph.add("Unsqueeze", [name, axis]) for name in x]
    return Value(graph.add("Concat", apart, axis=eqn.params["axis"]))


def _pad(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    low, high, inner = zip(*eqn.params["padding_config"], strict=True)
    if any(inner):
        raise NoForm("pad between elements")
    if eqn.invars[0].aval.dtype.kind == "b":
        wide = [graph.cast(each, np.int32) for each in x]
        padded = graph.add("Pad", [wide[0], graph.numbers([*low, *high]), wide[1]])
        return Value(graph.cast(padded, bool))
    return Value(graph.add("Pad", [x[0], graph.numbers([*low, *high]), x[1]]))


def _reduce(op: str, graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    axes = graph.numbers(eqn.params["axes"])
    logical = eqn.invars[0].aval.dtype.kind == "b"
    name = graph.cast(x[0], np.int32) if logical else x[0]
    name = graph.add(op, [name, axes], keepdims=0)
    return Value(graph.cast(name, bool) if logical else name)


def _argument(op: str, graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    name = graph.add(op, x, axis=eqn.params["axes"][0], keepdims=0)
    return Value(graph.cast(name, eqn.params["index_dtype"]))


def _cumsum(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    axis = graph.constant(np.array(eqn.params["axis"], np.int64))
    return Value(graph.add("CumSum", [x[0], axis], reverse=int(eqn.params["reverse"])))


def _dot_general(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    """MatMul of [..., K] and [K, N], else Einsum with a letter for each axis."""
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    ranks = [v.aval.ndim for v in eqn.invars]
    if not left_batch and tuple(left) == (ranks[0] - 1,) and tuple(right) == (0,) and ranks[1] == 2:
        return Value(graph.add("MatMul", x))
    letters = iter(string.ascii_letters)
    a = [next(letters) for _ in range(ranks[0])]
    b = [next(letters) for _ in range(ranks[1])]
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        b[j] = a[i]
    batch = [a[i] for i in left_batch]
    shared = {a[i] for i in (*left, *left_batch)}
    out = batch + [c for c in a + b if c not in shared]
    equation = f"{''.join(a)},{''.join(b)}->{''.join(out)}"
    return Value(graph.add("Einsum", x, equation=equation))


def _gather(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    """Rows of a table, a window of it, or in each row of a batch some positions."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, index_shape = (v.aval.shape for v in eqn.invars)
    if len(numbers.start_index_map) != 1 or index_shape[-1] != 1:
        raise NoForm("gather by several axes")
    (axis,), batch = numbers.start_index_map, numbers.operand_batching_dims
    kept = [i for i in range(len(shape)) if i != axis and i not in batch]
    if not numbers.collapsed_slice_dims and len(index_shape) == 1:
        zero = graph.constant(np.array(0, np.int64))
        starts = [x[1] if i == axis else zero for i in range(len(shape))]
        return Value(_window(graph, x[0], shape, starts, sizes))
    if numbers.collapsed_slice_dims != (axis,) or any(sizes[i] != shape[i] for i in kept):
        raise NoForm("gather of windows")
    new = len(index_shape) - 1 - len(batch)
    before = [i for i in range(len(batch), axis)]
    if batch and (before or batch != numbers.start_indices_batching_dims != (*range(len(batch)),)):
        raise NoForm("gather along an axis that does not follow those of the batch")
    places = [len(before) + len(batch) + new + i for i in range(len(kept) - len(before))]
    if numbers.offset_dims != (*before, *places):
        raise NoForm("gather with its axes in another order")
    if batch:
        index = graph.cast(x[1], np.int64)
        return Value(graph.add("GatherND", [x[0], index], batch_dims=len(batch)))
    return Value(graph.add("Gather", [x[0], graph.reshape(x[1], index_shape[:-1])], axis=axis))


def _dim_as_value(graph: Graph, eqn: Equation, x: Sequence[str]) -> Value:
    size = graph.size(eqn.params["dim"])
    return Value(graph.cast(graph.reshape(size, ()), eqn.outvars[0].aval.dtype))


def top_k(graph: Graph, eqn: Equation, x: Sequence[str]) -> list[Value]:
    """Values and indices of the largest, along the last axis."""
    number = graph.size(eqn.params["k"])
    values, places = graph.add("TopK", [x[0], number], outputs=2, axis=-1, sorted=1)
    return [Value(values), Value(graph.cast(places, eqn.outvars[1].aval.dtype))]


SHAPED: dict[str, Maker] = {
    "argmax": functools.partial(_argument, "ArgMax"),
    "argmin": functools.partial(_argument, "ArgMin"),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cumsum": _cumsum,
    "dim_as_value": _dim_as_value,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "expand_dims": _reshape,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reduce_and": functools.partial(_reduce, "ReduceMin"),
    "reduce_max": functools.partial(_reduce, "ReduceMax"),
    "reduce_min": functools.partial(_reduce, "ReduceMin"),
    "reduce_or": functools.partial(_reduce, "ReduceMax"),
    "reduce_prod": functools.partial(_reduce, "ReduceProd"),
    "reduce_sum": functools.partial(_reduce, "ReduceSum"),
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}
