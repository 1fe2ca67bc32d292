"""Mechanisms that change values or contexts and leave weights alone: `exclusive` and `laser`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import Mask, attend
from tests.attention_inputs import SEGMENTS, B, D, L, apply, plain, tensors


def test_exclusive_attention_takes_each_positions_own_value_out_of_its_context():
    arrays, mask = tensors(), Mask(causal=True)
    context = np.asarray(apply("exclusive", arrays, mask, {}), np.float64)
    own = np.repeat(np.asarray(arrays[2], np.float64), 2, axis=2)
    np.testing.assert_allclose(np.sum(context * own, axis=-1), 0.0, atol=1e-5)
    whole = np.asarray(plain(arrays, mask), np.float64)
    share = np.sum(whole * own, axis=-1, keepdims=True) / np.sum(own**2, axis=-1, keepdims=True)
    np.testing.assert_allclose(context, whole - share * own, atol=1e-5)


def test_exclusive_attention_of_values_of_zeros_is_plain():
    query, key, value, inputs = tensors()
    value = value.at[:, ::2].set(0.0)
    mask = Mask(causal=True)
    context = apply("exclusive", [query, key, value, inputs], mask, {})
    expected = attend(query, key, value, mask=mask)
    np.testing.assert_allclose(context[:, ::2], expected[:, ::2], atol=1e-6)
    assert np.isfinite(context).all()


@pytest.mark.parametrize("weighting", ["softmax", "entmax15", "sigmoid"])
def test_laser_is_the_logarithm_of_a_mean_of_exponentials(weighting):
    query, key, value, inputs = tensors()
    mask = Mask(causal=True, segments=SEGMENTS)
    context = apply("laser", [query, key, value, inputs], mask, {}, weighting=weighting)
    unit = jnp.broadcast_to(jnp.eye(L)[:, None], (B, L, value.shape[2], L))
    weights = np.asarray(attend(query, key, unit, mask=mask, weighting=weighting), np.float64)
    exponentials = np.exp(np.repeat(np.asarray(value, np.float64), 2, axis=2))
    mean = np.einsum("bqhs,bshk->bqhk", weights, exponentials)
    np.testing.assert_allclose(context, np.log(mean), atol=1e-5)


def test_laser_keeps_a_score_moving_where_plain_attention_has_almost_stopped():
    scores = np.array([0.0, -20.0])
    query = jnp.ones((1, 1, 1, 1))
    key = jnp.asarray(scores, jnp.float32).reshape(1, 2, 1, 1)
    value = jnp.asarray([0.0, 30.0]).reshape(1, 2, 1, 1)

    def moved(name):
        def context(key):
            arrays = [query, key, value, jnp.zeros((1, 1, D))]
            return jnp.sum(apply(name, arrays, Mask(), {}))

        return float(jax.grad(context)(key)[0, 1, 0, 0])

    assert 0.9 < moved("laser") <= 1.0
    assert moved("scores") < 1e-6
