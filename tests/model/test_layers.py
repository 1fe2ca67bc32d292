"""The layers' own arithmetic equals the plain formulas, forward and backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs import default
from lm.attention.norms import LayerNorm, RMSNorm
from lm.config import override
from lm.devices.cpu import dense_product, fusion_barrier
from lm.model.activations import gelu_exact
from lm.model.embedding import Embedding
from lm.model.resolve import model_config
from lm.output.product import product


def some(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(4, 12), (12, 4)])
def test_dense_layers_on_a_cpu_equal_linens(fan_in, fan_out):
    x, weight = some(2, 5, fan_in), some(2, 5, fan_out)
    params = nn.Dense(fan_out).init(jax.random.key(0), x)

    def loss(params, x, **options):
        return jnp.sum(nn.Dense(fan_out, **options).apply(params, x) * weight)

    expected = jax.value_and_grad(loss, (0, 1))(params, x)
    found = jax.value_and_grad(lambda *a: loss(*a, dot_general=dense_product), (0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("rows", [1, 64, 65])
def test_a_product_with_the_table_and_its_gradients_equal_plain_ones(rows):
    hidden, table, weight = some(rows, 8), some(12, 8, seed=1), some(rows, 12, seed=2)

    def ours(hidden, table):
        found = product(hidden, table, jnp.float32)
        return jnp.sum(found * weight), found

    expected = hidden @ table.T
    (_, found), gradients = jax.value_and_grad(ours, (0, 1), has_aux=True)(hidden, table)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(gradients[0], weight @ table, atol=5e-6)
    np.testing.assert_allclose(gradients[1], weight.T @ hidden, atol=1e-5)


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
    positions, kinds = jnp.zeros((1, 2), jnp.int32), ("learned", "rotary", "sinusoidal")
    settings = {"model.d_model": 4, "model.num_heads": 1, "model.num_token_types": 2}
    settings |= {"model.init_std": 1.0}
    configs = (
        override(default.get_config(), settings | {"model.position_embedding": kind})
        for kind in kinds
    )
    tables = [
        Embedding(model_config(config).embedding).init(
            jax.random.key(0), jnp.ones((1, 2, 4)), positions, None, False
        )["params"]
        for config in configs
    ]
    for table in tables[1:]:
        np.testing.assert_array_equal(table["type_embedding"], tables[0]["type_embedding"])
