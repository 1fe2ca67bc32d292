"""Builds an ONNX graph node by node: names, constants, and sizes that are known when it runs."""

import ast
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lm.errors import UserError

Dim = Any  # an int, or a symbolic dimension of jax.export
Attribute = int | str | list[int]  # of a node
OPSET = 18
_DIM_OPS = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
_DIM_CALLS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}


class Value(NamedTuple):
    """A tensor of the graph.

    Attributes:
      name: of the tensor.
      whole: whether it has its whole shape; else axes of size 1 stand for longer ones, as
        operators by element take them.
    """

    name: str
    whole: bool = True


class Graph:
    """An ONNX graph in the making.

    Attributes:
      nodes: in order.
      initializers: its constants.
    """

    def __init__(self, arguments: Mapping[str, Sequence[Dim]]):
        """`arguments` are the names and shapes of its inputs."""
        self._helper = importlib.import_module("onnx.helper")
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._sizes: dict[str, str] = {}
        self._arguments = arguments

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Attribute) -> Any:
        """Appends a node; the name of its output, or of its outputs."""
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(self._helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """The name of a constant; equal small ones are kept once."""
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

        key = (str(array.dtype), array.shape, array.tobytes()) if array.size <= 64 else None
        if key in self._constants:
            return self._constants[key]
        name = name or f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        if key is not None:
            self._constants[key] = name
        return name

    def numbers(self, values: Sequence[int]) -> str:
        """A constant of int64 numbers, [n]."""
        return self.constant(np.array(values, np.int64))

    def shape(self, dims: Sequence[Dim]) -> str:
        """A tensor [n] of the sizes of a shape, in int64."""
        if all(isinstance(d, int) for d in dims):
            return self.numbers(list(dims))
        return self.add("Concat", [self.size(d) for d in dims], axis=0)

    def size(self, dim: Dim) -> str:
        """A tensor [1] of a size, in int64."""
        if isinstance(dim, int):
            return self.numbers([dim])
        text = str(dim)
        if text not in self._sizes:
            self._sizes[text] = self._sized(ast.parse(text, mode="eval").body)
        return self._sizes[text]

    def _sized(self, node: ast.AST) -> str:
        """A tensor [1] of the value of a symbolic dimension, as JAX writes it."""
        if isinstance(node, ast.Name):
            return self._measured(node.id)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return self.numbers([node.value])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self.add("Neg", [self._sized(node.operand)])
        if isinstance(node, ast.BinOp) and type(node.op) in _DIM_OPS:
            operands = [self._sized(node.left), self._sized(node.right)]
            return self.add(_DIM_OPS[type(node.op)], operands)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self.add(_DIM_CALLS[node.func.id], [self._sized(x) for x in node.args])
        raise UserError(f"onnx cannot compute the size {ast.unparse(node)}; use --format=stablehlo")

    def _measured(self, name: str) -> str:
        """A named dimension, read off the first argument that has it."""
        if name not in self._sizes:
            argument, axis = next(
                (argument, axis)
                for argument, dims in self._arguments.items()
                for axis, dim in enumerate(dims)
                if str(dim) == name
            )
            self._sizes[name] = self.add("Shape", [argument], start=axis, end=axis + 1)
        return self._sizes[name]

    def reshape(self, name: str, dims: Sequence[Dim]) -> str:
        """A tensor in another shape."""
        return self.add("Reshape", [name, self.shape(dims)])

    def cast(self, name: str, dtype: DTypeLike) -> str:
        """A tensor in another type."""
        return self.add("Cast", [name], to=self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
