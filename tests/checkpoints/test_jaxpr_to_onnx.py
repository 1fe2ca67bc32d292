"""JAX's operations as ONNX nodes give JAX's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime

from lm.checkpoints.export.jaxpr_to_onnx import to_onnx
from lm.errors import UserError

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((3, 4, 5)).astype(np.float32)
TINY = np.geomspace(1e-7, 0.6, 60).astype(np.float32).reshape(3, 4, 5)
PLACES = DRAW.integers(0, 4, (3, 2)).astype(np.int32)
B = X > 0
CASES = {
    "expm1 of small numbers": (lambda x: jnp.expm1(-x), TINY),
    "log1p of small numbers": (jnp.log1p, TINY),
    "log1p of others": (lambda x: jnp.log1p(3 * jnp.abs(x)), X),
    "rsqrt": (lambda x: jax.lax.rsqrt(jnp.abs(x)), X),
    "powers": (lambda x: x**3 + x**2 + jnp.abs(x) ** 0.3, X),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), X),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.5), X),
    "remainders": (lambda x: (x * 7).astype(jnp.int32) % 3, X),
    "logic": (lambda x, b: ((x > 0) ^ b) | ~b & (x != 0), X, ~B),
    "where of booleans": (lambda x, b: jnp.where(x > 0.5, b, ~b), X, B),
    "whole": (lambda x, b: jnp.stack([jnp.all(b, 1), jnp.any(b, 1)]), X, B),
    "sums": (lambda x: jnp.cumsum(x, 1) + jnp.sum(x, (0, 2), keepdims=True), X),
    "extrema": (lambda x: jnp.max(x, 1) - jnp.min(x, 1) + jnp.argmax(x, 1), X),
    "products": (lambda x: jnp.einsum("abc,adc->bad", x, x) @ jnp.ones((4, 2)), X),
    "top k": (lambda x: jax.lax.top_k(x, 2)[1] + jax.lax.top_k(x, 2)[0], X),
    "rows of a table": (lambda x, i: jnp.ones((3, 1, 1)) * x[0][i], X, PLACES),
    "columns": (lambda x: x[:, np.array([3, 1, 1])], X),
    "along an axis": (lambda x, i: jnp.take_along_axis(x, i[:, :, None], axis=1), X, PLACES),
    "slices": (lambda x: jnp.flip(jax.lax.slice_in_dim(x, 0, 5, 2, 2), 2), X),
    "a moving slice": (lambda x, i: jax.lax.dynamic_slice_in_dim(x, i[0, 0], 3, 1), X, PLACES),
    "padding": (lambda x: jnp.pad(jnp.concatenate([x, -x], 1), ((0, 0), (1, 2), (0, 0))), X),
    "axes": (lambda x: x.transpose(1, 0, 2)[:, None] + jnp.ones((4, 2, 1, 5)), X),
    "sizes": (lambda x: x.reshape(-1, 5) * x.shape[0] + jnp.arange(5), X),
}


def found(function, *arrays, free=True):
    """What onnxruntime gives, the first size of the arguments left to it."""
    (size,) = export.symbolic_shape("rows") if free else (len(arrays[0]),)
    shapes = {f"x{i}": (size, *x.shape[1:]) for i, x in enumerate(arrays)}
    dtypes = (x.dtype for x in arrays)
    given = dict(zip(shapes, map(jax.ShapeDtypeStruct, shapes.values(), dtypes), strict=True))
    model = to_onnx(lambda params, *x: function(*x), {}, given, "y")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    used = {each.name for each in session.get_inputs()}
    asked = dict(zip(given, arrays, strict=True))
    return session.run(["y"], {name: asked[name] for name in used})[0]


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_the_numbers_of_jax(name):
    function, *arrays = CASES[name]
    wanted = function(*map(jnp.asarray, arrays))
    moving = name in ("rows of a table", "a moving slice")
    got = found(function, *arrays, free=not moving)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=3e-6, atol=1e-9)


def test_an_operation_without_a_form_is_refused_by_name():
    line = "onnx has no form here for JAX's operation sort, which .* has; use --format=stablehlo"
    with pytest.raises(UserError, match=line):
        found(lambda x: jnp.sort(x, 1), X)


def test_parameters_are_constants_under_their_names_and_held_once():
    params = {"stack": {"kernel": np.ones((100, 5), np.float32)}}
    given = {"x": jax.ShapeDtypeStruct((3, 5), np.float32)}

    def tied(params, x):
        return x @ params["stack"]["kernel"].T @ params["stack"]["kernel"]

    graph = to_onnx(tied, params, given, "y").graph
    assert [x.name for x in graph.initializer if len(x.dims) == 2] == ["stack/kernel"]
