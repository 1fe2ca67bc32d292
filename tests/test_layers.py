"""The layers' own arithmetic equals the plain formulas, forward and backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.linear import flat_product
from lm.materialise import materialise
from lm.norm import LayerNorm, RMSNorm


def some(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(4, 12), (12, 4)])
def test_flat_products_equal_dense_layers(fan_in, fan_out):
    x, kernel, weight = some(2, 5, fan_in), some(fan_in, fan_out, seed=1), some(2, 5, fan_out)

    def ours(x, kernel):
        return jnp.sum(flat_product(x, kernel, None) * weight)

    def plain(x, kernel):
        return jnp.sum((x @ kernel) * weight)

    value, gradient = jax.value_and_grad(ours, (0, 1))(x, kernel)
    expected, expected_gradient = jax.value_and_grad(plain, (0, 1))(x, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


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
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(materialise(x))))(x)
    np.testing.assert_allclose(value, np.sin(x).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.cos(x), rtol=1e-6)
