"""The layers' own arithmetic equals the plain formulas, forward and backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lm.devices.cpu import fusion_barrier
from lm.model.embedding import Embedding
from lm.model.layers import gelu_exact
from lm.model.linear import Dense, flat_product, turned
from lm.model.norms import LayerNorm, RMSNorm
from lm.output.product import product


def some(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(4, 12), (12, 4)])
def test_flat_products_equal_dense_layers(fan_in, fan_out):
    x, kernel, weight = some(2, 5, fan_in), some(fan_in, fan_out, seed=1), some(2, 5, fan_out)

    def ours(x, kernel):
        return jnp.sum(flat_product(x, kernel) * weight)

    def plain(x, kernel):
        return jnp.sum((x @ kernel) * weight)

    value, gradient = jax.value_and_grad(ours, (0, 1))(x, kernel)
    expected, expected_gradient = jax.value_and_grad(plain, (0, 1))(x, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_dense_layers_start_and_compute_as_linens(bias):
    x, key = some(2, 5, 4), jax.random.key(0)
    (ours, params), (linens, expected) = (
        kind(12, use_bias=bias).init_with_output(key, x) for kind in (Dense, nn.Dense)
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    np.testing.assert_allclose(ours, linens, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 64, 65])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_turned_kernels_lie_the_other_way_and_compute_the_same(rows, dtype):
    layer, x = Dense(12, dtype=dtype), some(rows, 1, 4)
    own = layer.init(jax.random.key(0), x)["params"]
    found = turned({"attention": {"query": own}})["attention"]["query"]
    assert {name: leaf.shape for name, leaf in found.items()} == {
        "turned_kernel": (12, 4),
        "bias": (12,),
    }
    expected = layer.apply({"params": own}, x)
    np.testing.assert_allclose(
        np.asarray(layer.apply({"params": found}, x), np.float32),
        np.asarray(expected, np.float32),
        atol=1e-6 if dtype is None else 0.02,
    )


@pytest.mark.parametrize("rows", [1, 64, 65])
def test_few_hidden_states_meet_the_table_as_many_do(rows):
    hidden, table, weight = some(rows, 8), some(12, 8, seed=1), some(rows, 12, seed=2)

    def ours(hidden, table):
        found = product(hidden, table, jnp.float32)
        return jnp.sum(found * weight), found

    expected = hidden @ table.T
    (_, found), gradients = jax.value_and_grad(ours, (0, 1), has_aux=True)(hidden, table)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(gradients[0], weight @ table, atol=5e-6)
    np.testing.assert_allclose(gradients[1], weight.T @ hidden, atol=1e-5)


def test_what_is_added_to_or_lies_elsewhere_is_not_turned():
    kernel = {"kernel": jnp.ones((2, 3, 4))}
    tree = {
        "layers": {"feed_forward": {"in": kernel, "out": kernel | {"lora": {"a_kernel": 1.0}}}},
        "layer_0": {"attention": {"mechanism": {"gate": kernel}}},
        "head": {"prior": kernel},
    }
    found = turned(tree)
    assert found["layers"]["feed_forward"]["in"]["turned_kernel"].shape == (2, 4, 3)
    found["layers"]["feed_forward"]["in"] = kernel
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert jax.tree.structure(turned(turned(tree))) == jax.tree.structure(turned(tree))


@pytest.mark.parametrize(
    ("dtype", "relative", "of_slope"), [(jnp.float32, 0, 1e-6), (jnp.bfloat16, 2**-8, 0.005)]
)
def test_exact_gelu_is_x_times_the_share_of_a_normal_below_it(dtype, relative, of_slope):
    x = jnp.linspace(-12.0, 12.0, 1001, dtype=dtype)
    wide = np.asarray(x, np.float64)
    below = scipy.stats.norm.cdf(wide)
    error = np.abs(np.asarray(gelu_exact(x), np.float64) - wide * below)
    assert (error <= 2e-7 * np.abs(wide) + relative * np.abs(wide * below)).all()
    slope = np.asarray(jax.vmap(jax.grad(gelu_exact))(x), np.float64)
    expected = below + wide * scipy.stats.norm.pdf(wide)
    np.testing.assert_allclose(slope, expected, atol=of_slope)


@pytest.mark.parametrize(("ours", "linen"), [(LayerNorm, nn.LayerNorm), (RMSNorm, nn.RMSNorm)])
def test_norms_equal_linens(ours, linen):
    x, weight = some(3, 16) * 4 + 2, some(3, 16, seed=1)
    params = linen().init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: p + some(16, seed=2), params)

    def total(module, params, x):
        return jnp.sum(module().apply(params, x) * weight)

    for mine, theirs in zip(
        jax.tree.leaves(jax.value_and_grad(lambda *a: total(ours, *a), (0, 1))(params, x)),
        jax.tree.leaves(jax.value_and_grad(lambda *a: total(linen, *a), (0, 1))(params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_norms_are_computed_in_float32_and_keep_the_type():
    x = jnp.asarray(some(3, 16) + 100.0, jnp.bfloat16)
    y = LayerNorm().apply({"params": {"scale": jnp.ones(16), "bias": jnp.zeros(16)}}, x)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, atol=0.02)


def test_materialising_changes_no_value_and_no_gradient():
    x = some(4)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(fusion_barrier(x))))(x)
    np.testing.assert_allclose(value, np.sin(x).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.cos(x), rtol=1e-6)


def test_token_types_begin_alike_beside_any_positions():
    normal, places = nn.initializers.normal(1.0), jnp.zeros((1, 2), jnp.int32)
    tables = [
        Embedding(4, positions, 8, 2, 1.0, None, 1e-6, 0.0, normal, jnp.float32, jnp.float32).init(
            jax.random.key(0), jnp.ones((1, 2, 4)), places, None, False
        )["params"]
        for positions in ("learned", "rotary", "sinusoidal")
    ]
    for table in tables[1:]:
        np.testing.assert_array_equal(table["type_embedding"], tables[0]["type_embedding"])
