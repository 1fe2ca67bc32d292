"""Converts a jaxpr to an ONNX graph: every equation by the tables of its primitive."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from lm.checkpoints.export.jaxpr_to_onnx.elementwise import ELEMENTWISE
from lm.checkpoints.export.jaxpr_to_onnx.graph import OPSET, Graph, Value
from lm.checkpoints.export.jaxpr_to_onnx.shapes import SHAPED, Equation, NoForm, top_k
from lm.checkpoints.layer_layout import named_leaves
from lm.errors import UserError

Shaped = Any  # a type of JAX with a shape and a dtype
Variable = Any  # of a jaxpr, or a literal: it has such a type
_IR_VERSION = 10  # what onnxruntime 1.20 and newer read
# Where an equation that stands for others has them.
_INLINED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_LOOPS = {"scan", "while", "cond"}


def to_onnx(
    function: Callable[..., jax.Array],
    params: Mapping[str, Any],
    arguments: Mapping[str, jax.ShapeDtypeStruct],
    output: str,
) -> Any:
    """An ONNX model, `onnx.ModelProto`, of a function of (params, *arguments).

    Args:
      function: to one array.
      params: become constants of the graph, under the names of their paths.
      arguments: its inputs by name, whose sizes may be symbolic.
      output: the name of the result.

    Raises:
      UserError: an operation has no form in ONNX.
    """
    from onnx import checker, helper  # pyright: ignore[reportMissingImports]

    closed = jax.make_jaxpr(function)(params, *arguments.values())
    graph = Graph({name: x.shape for name, x in arguments.items()})
    leaves = named_leaves(params)
    names = [graph.constant(np.asarray(x), name) for name, x in leaves.items()]
    inputs = [Value(name) for name in (*names, *arguments)]
    (found,) = _Converter(graph).convert(closed.jaxpr, closed.consts, inputs)
    graph.nodes.append(helper.make_node("Identity", [found.name], [output]))

    def described(name: str, aval: Shaped) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
        sizes = [d if isinstance(d, int) else str(d) for d in aval.shape]
        return helper.make_tensor_value_info(name, kind, sizes)

    ins = [described(name, x) for name, x in arguments.items()]
    outs = [described(output, closed.out_avals[0])]
    made = helper.make_graph(graph.nodes, "model", ins, outs, graph.initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = _IR_VERSION
    checker.check_model(model)
    return model


class _Converter:
    """Puts the equations of a jaxpr, and of those within, into a graph."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def convert(
        self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Value]
    ) -> list[Value]:
        """The values of a jaxpr's results."""
        env: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = Value(self.graph.constant(np.asarray(const)))

        def read(var: Variable) -> Value:
            if not isinstance(var, core.Var):  # a literal
                return Value(self.graph.constant(np.asarray(var.val, var.aval.dtype)))
            return env[var]

        for eqn in jaxpr.eqns:
            env.update(
                zip(eqn.outvars, self._equation(eqn, list(map(read, eqn.invars))), strict=True)
            )
        return [Value(self._whole(read(v), v.aval)) for v in jaxpr.outvars]

    def _equation(self, eqn: Equation, inputs: list[Value]) -> list[Value]:
        kind = eqn.primitive.name
        if kind in ELEMENTWISE:
            return [self._by_element(eqn, inputs)]
        inner = next((eqn.params[key] for key in _INLINED if key in eqn.params), None)
        if inner is not None and kind not in _LOOPS:
            consts = getattr(inner, "consts", ())
            return self.convert(getattr(inner, "jaxpr", inner), consts, inputs)
        names = [self._whole(x, v.aval) for x, v in zip(inputs, eqn.invars, strict=True)]
        try:
            if kind == "top_k":
                return top_k(self.graph, eqn, names)
            if kind not in SHAPED:
                raise NoForm(kind)
            return [SHAPED[kind](self.graph, eqn, names)]
        except NoForm as reason:
            where = str(eqn.source_info.name_stack) or "the model"
            raise UserError(
                f"onnx has no form here for JAX's operation {reason}, which {where} has; use "
                "--format=stablehlo"
            ) from None

    def _by_element(self, eqn: Equation, inputs: list[Value]) -> Value:
        """Operands of rank 0 go with all; others may have axes of size 1 for longer ones."""
        dtype = np.dtype(eqn.invars[-1].aval.dtype)
        name = ELEMENTWISE[eqn.primitive.name](
            self.graph, [x.name for x in inputs], dtype, eqn.params
        )
        shape = eqn.outvars[0].aval.shape
        whole = any(
            x.whole and v.aval.shape == shape for x, v in zip(inputs, eqn.invars, strict=True)
        )
        return Value(name, whole)

    def _whole(self, value: Value, aval: Shaped) -> str:
        if value.whole:
            return value.name
        return self.graph.add("Expand", [value.name, self.graph.shape(aval.shape)])
