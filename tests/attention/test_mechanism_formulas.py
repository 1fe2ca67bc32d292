"""Every mechanism of `ATTENTIONS` is the formula that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import ATTENTIONS, Mask, attend
from lm.attention.base import LayerContext
from lm.attention.feature_product import feature_attend
from lm.attention.forgetting import running_sum
from lm.attention.linear import cosine_features, elu_features, orthogonal_normal, random_exponents
from lm.attention.mask import ALL_SEGMENTS
from lm.attention.stick_breaking import break_stick
from tests.attention_inputs import (
    SEGMENTS,
    B,
    D,
    H,
    K,
    L,
    apply,
    dense,
    plain,
    temporaries,
    tensors,
)


@pytest.mark.parametrize("weighting", ["softmax", "sink", "entmax15"])
def test_differential_attention_is_plain_without_what_is_subtracted(weighting):
    query, key, value, inputs = tensors()
    options = {"weighting": weighting, "lambda_init": 0.0, "head_norm": False}
    params = {name: jnp.zeros(K // 2) for name in ("query_first", "key_first")}
    params |= {name: jnp.zeros(K // 2) for name in ("query_second", "key_second")}
    sink = {"sink": jnp.linspace(-1, 1, H)} if weighting == "sink" else {}
    mask = Mask(causal=True)
    arrays = [query, key, value, inputs]
    context = apply("differential", arrays, mask, params | {"scores": sink}, **options)
    first = query[..., ::2], key[..., ::2], value
    expected = attend(*first, mask=mask, weighting=weighting, learned=sink)
    np.testing.assert_array_equal(context, expected)


def test_differential_attention_is_its_formula():
    arrays = tensors()
    rng = np.random.default_rng(5)
    names = ("query_first", "key_first", "query_second", "key_second")
    params = {name: rng.normal(size=K // 2) / 3 for name in names}
    scale = rng.normal(size=K)
    tree = params | {"head_norm": {"scale": scale}}
    context = apply("differential", arrays, Mask(causal=True), tree, lambda_init=0.3)
    query, key, value = (np.asarray(x, np.float64) for x in arrays[:3])
    key, value = np.repeat(key, 2, axis=2), np.repeat(value, 2, axis=2)
    weights = []
    for i in range(2):
        scores = np.einsum("bqhk,bshk->bhqs", query[..., i::2], key[..., i::2]) * (K / 2) ** -0.5
        scores = np.where(np.tri(L, dtype=bool), scores, -np.inf)
        exponentials = np.exp(scores)
        weights.append(exponentials / exponentials.sum(-1, keepdims=True))
    share = np.exp(params["query_first"] @ params["key_first"])
    share += 0.3 - np.exp(params["query_second"] @ params["key_second"])
    expected = np.einsum("bhqs,bshk->bqhk", weights[0] - share * weights[1], value)
    expected /= np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(context, 0.7 * scale * expected, atol=1e-5)


@pytest.mark.parametrize("gate", ["elementwise", "head"])
def test_gated_attention_is_plain_times_a_sigmoid_of_the_inputs(gate):
    arrays = tensors()
    size = K if gate == "elementwise" else 1
    kernel = np.random.default_rng(0).normal(size=(D, H * size)).astype(np.float32)
    mask = Mask(causal=True)
    context = apply("gated", arrays, mask, {"gate": {"kernel": kernel}}, gate=gate)
    gates = 1 / (1 + np.exp(-np.asarray(arrays[3]) @ kernel))
    expected = gates.reshape(B, L, H, size) * plain(arrays, mask)
    np.testing.assert_allclose(context, expected, atol=1e-6)


def test_gates_of_one_are_plain_attention():
    arrays = tensors()
    arrays[3] = jnp.ones_like(arrays[3])
    params = {"gate": {"kernel": jnp.full((D, H * K), 100.0)}}
    mask = Mask(causal=True)
    np.testing.assert_array_equal(apply("gated", arrays, mask, params), plain(arrays, mask))


def test_forgetting_nothing_is_plain_attention():
    arrays = tensors()
    params = {"gate": {"kernel": jnp.ones((D, H)), "bias": jnp.full(H, jnp.inf)}}
    mask = Mask(causal=True, segments=jnp.asarray(SEGMENTS))
    np.testing.assert_array_equal(apply("forgetting", arrays, mask, params), plain(arrays, mask))


@pytest.mark.parametrize("query_chunk_size", [None, 0, 5])
def test_forgetting_adds_the_logarithms_of_the_gates_between(query_chunk_size):
    arrays = tensors()
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(D, H)), rng.normal(size=H)
    params = {"gate": {"kernel": kernel, "bias": bias}}
    mask = Mask(causal=True, segments=jnp.asarray(SEGMENTS))
    context = apply("forgetting", arrays, mask, params, query_chunk_size=query_chunk_size)
    query, key, value, inputs = (np.asarray(x, np.float64) for x in arrays)
    key, value = np.repeat(key, 2, axis=2), np.repeat(value, 2, axis=2)
    kept = -np.log1p(np.exp(-(inputs @ kernel + bias)))
    scores = np.einsum("bqhk,bshk->bhqs", query, key) * K**-0.5
    for i in range(L):
        for j in range(i):
            scores[:, :, i, j] += kept[:, j + 1 : i + 1].sum(1)
    weights = np.exp(np.where(dense(mask)[:, None], scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(context, np.einsum("bhqs,bshk->bqhk", weights, value), atol=2e-6)


def test_running_sums_begin_anew_in_each_document():
    x = np.random.default_rng(0).normal(size=(B, L, 3))
    expected = np.zeros_like(x)
    for b in range(B):
        for i in range(L):
            expected[b, i] = x[b, : i + 1][SEGMENTS[b, : i + 1] == SEGMENTS[b, i]].sum(0)
    actual = running_sum(jnp.asarray(x, jnp.float32), jnp.asarray(SEGMENTS))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_running_sums_of_every_document_go_on_from_what_all_see():
    x = np.random.default_rng(0).normal(size=(1, 7, 3))
    segments = jnp.array([[ALL_SEGMENTS, ALL_SEGMENTS, 1, 1, 2, 2, 0]])
    actual = running_sum(jnp.asarray(x, jnp.float32), segments)[0]
    for document in (slice(2, 4), slice(4, 6)):
        alone = np.concatenate([x[0, :2], x[0, document]]).cumsum(0)
        np.testing.assert_allclose(actual[:2], alone[:2], atol=1e-6)
        np.testing.assert_allclose(actual[document], alone[2:], atol=1e-6)


def test_talking_heads_start_as_plain_attention():
    arrays = tensors()
    mask = Mask(causal=True, segments=jnp.asarray(SEGMENTS))
    params = {"before": jnp.eye(H), "after": jnp.eye(H)}
    context = apply("talking_heads", arrays, mask, params)
    np.testing.assert_allclose(context, plain(arrays, mask), atol=1e-6)
    module = ATTENTIONS["talking_heads"]()
    initial = module.init(jax.random.key(0), *arrays[:3], mask, LayerContext(arrays[0]))["params"]
    jax.tree.map(np.testing.assert_array_equal, initial, params)


def test_talking_heads_mix_scores_and_then_weights():
    arrays = tensors()
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, H, H))
    context = apply("talking_heads", arrays, Mask(causal=True), {"before": before, "after": after})
    query, key, value = (np.asarray(x, np.float64) for x in arrays[:3])
    key, value = np.repeat(key, 2, axis=2), np.repeat(value, 2, axis=2)
    scores = np.einsum("bqgk,bsgk,gh->bhqs", query, key, before) * K**-0.5
    weights = np.exp(np.where(np.tri(L, dtype=bool), scores, -np.inf))
    weights = np.einsum("bgqs,gh->bhqs", weights / weights.sum(-1, keepdims=True), after)
    np.testing.assert_allclose(context, np.einsum("bhqs,bshk->bqhk", weights, value), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_a_stick_is_broken_from_the_last_key_to_the_first(scale):
    rng = np.random.default_rng(0)
    scores = (scale * rng.normal(size=(50, 9))).astype(np.float32)
    where = rng.random((50, 9)) < 0.7
    where[0] = False
    weights = np.asarray(break_stick(jnp.asarray(scores), jnp.asarray(where)))
    for z, seen, row in zip(scores.astype(np.float64), where, weights, strict=True):
        left = 1.0
        for j in reversed(range(9)):
            expected = left / (1 + np.exp(-z[j])) if seen[j] else 0.0
            np.testing.assert_allclose(row[j], expected, rtol=1e-4, atol=1e-30)
            left /= 1 + np.exp(z[j]) if seen[j] else 1.0
    assert (weights.sum(-1) <= 1 + 1e-6).all()
    assert (weights[~where] == 0).all()
    gradient = jax.grad(lambda z: jnp.sum(jnp.sin(break_stick(z, where))))(jnp.asarray(scores))
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[~where] == 0).all()


def test_stick_breaking_looks_at_earlier_positions_only():
    query, key, value, inputs = tensors()
    context = apply("stick_breaking", [query, key, value, inputs], Mask(causal=True))
    assert (np.asarray(context)[:, 0] == 0).all()
    scores = np.einsum("bqhk,bshk->bhqs", query, jnp.repeat(key, 2, axis=2)) * K**-0.5
    weights = break_stick(jnp.asarray(scores), jnp.tri(L, k=-1, dtype=bool))
    expected = np.einsum("bhqs,bshk->bqhk", weights, jnp.repeat(value, 2, axis=2))
    np.testing.assert_allclose(context, expected, atol=2e-6)


@pytest.mark.parametrize("sided", ["causal", "both"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("query_chunk_size", [None, 0, 1, 4, 5, 64])
def test_sums_of_features_are_their_quadratic_formula(sided, packed, query_chunk_size):
    query, key, value, _ = tensors()
    query, key = elu_features(query), elu_features(key)
    segments = jnp.asarray(SEGMENTS) if packed else None
    mask = Mask(causal=sided == "causal", segments=segments)
    context = feature_attend(query, key, value, mask, query_chunk_size)
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    weights = np.einsum("bqhk,bshk->bhqs", q, k) * dense(mask)[:, None]
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(context, np.einsum("bhqs,bshk->bqhk", weights, v), atol=2e-6)


def test_linear_attention_is_its_quadratic_formula():
    arrays = tensors()
    context = apply("linear", arrays, Mask(causal=True))
    q, k, v = (np.asarray(x, np.float64) for x in arrays[:3])
    k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    q, k = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
    weights = np.einsum("bqhk,bshk->bhqs", q, k) * np.tri(L)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(context, np.einsum("bhqs,bshk->bqhk", weights, v), atol=2e-6)


@pytest.mark.parametrize("sided", ["causal", "both"])
def test_cosformer_is_its_quadratic_formula(sided):
    arrays = tensors()
    context = apply("cosformer", arrays, Mask(causal=sided == "causal"), horizon=20)
    q, k, v = (
        np.maximum(np.asarray(x, np.float64), -9 * (i == 2)) for i, x in enumerate(arrays[:3])
    )
    k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    places = np.arange(L)
    weights = np.einsum("bqhk,bshk->bhqs", q, k)
    weights *= np.cos(np.pi / 2 * (places[:, None] - places) / 20)
    if sided == "causal":
        weights *= np.tri(L)
    total = np.maximum(weights.sum(-1, keepdims=True), 1e-6)
    np.testing.assert_allclose(context, np.einsum("bhqs,bshk->bqhk", weights / total, v), atol=3e-6)


def test_cosine_features_depend_on_differences_of_places_only():
    query, key, *_ = tensors(groups=4)

    def weights(shift):
        of_queries, of_keys = (cosine_features(x, shift + jnp.arange(L), 64) for x in (query, key))
        return jnp.einsum("bqhk,bshk->bhqs", of_queries, of_keys)

    np.testing.assert_allclose(weights(0), weights(41), atol=1e-5)


def test_the_mean_of_random_products_over_draws_is_the_exponential_of_the_score():
    # Longer vectors have heavier tails.
    query, key = (x / 2 for x in tensors(length=4, groups=4, batch=1)[:2])

    def products(draw):
        directions = orthogonal_normal(jax.random.fold_in(jax.random.key(0), draw), 2 * K, K)
        q, k = (jnp.exp(random_exponents(x, directions)) for x in (query, key))
        return jnp.einsum("bqhk,bshk->bhqs", q, k)

    draws = np.asarray(jax.lax.map(products, jnp.arange(8000), batch_size=1000), np.float64)
    expected = np.exp(np.einsum("bqhk,bshk->bhqs", query, key) * K**-0.5)
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - expected) < 5 * error + 1e-5).all()
    assert np.mean(np.abs(draws.mean(0) / expected - 1)) < 0.01


@pytest.mark.slow
def test_favor_tends_to_softmax_attention_with_the_root_of_its_features():
    arrays = [x / 2 for x in tensors()]
    mask = Mask(causal=True, segments=jnp.asarray(SEGMENTS))

    def error(features):
        context = apply("favor", arrays, mask, random_features=features)
        return np.sqrt(np.mean((context - plain(arrays, mask)) ** 2))

    errors = np.array([error(features) for features in (64, 512, 4096)])
    assert errors[2] < 0.03
    # Eight times the features, a third of the error.
    assert ((errors[:-1] / errors[1:] > 1.5) & (errors[:-1] / errors[1:] < 6)).all()


def test_random_directions_are_normal_and_orthogonal_within_a_run():
    draws = jax.vmap(lambda i: orthogonal_normal(jax.random.fold_in(jax.random.key(0), i), 6, 4))
    directions = np.asarray(draws(jnp.arange(4000)), np.float64)
    np.testing.assert_allclose(directions.mean(0), 0, atol=0.08)
    np.testing.assert_allclose((directions**2).mean(0), 1, atol=0.12)
    products = np.einsum("nik,njk->nij", directions, directions)
    products = products[:, *np.triu_indices(4, 1)]
    np.testing.assert_allclose(products, 0, atol=1e-4)


def test_redrawn_features_differ_by_their_key_and_fixed_ones_do_not():
    arrays, mask = tensors(), Mask(causal=True)

    def context(redraw, seed):
        module = ATTENTIONS["favor"](redraw=redraw)
        layer, rngs = LayerContext(arrays[0]), {"softmax": jax.random.key(seed)}
        return module.apply({}, *arrays[:3], mask, layer, rngs=rngs)

    assert (context(True, 0) != context(True, 1)).any()
    np.testing.assert_array_equal(context(True, 0), context(True, 0))
    np.testing.assert_array_equal(context(False, 0), context(False, 1))


@pytest.mark.parametrize("name", ["linear", "favor", "cosformer"])
def test_the_memory_of_sums_of_features_is_linear_in_length(name):
    def context(query, key, value):
        mask, layer = Mask(causal=True), LayerContext(query)
        return ATTENTIONS[name]().apply({}, query, key, value, mask, layer)

    assert temporaries(context, 2048) < 2.5 * temporaries(context, 1024)


@pytest.mark.parametrize("name", ["linear", "favor", "cosformer"])
def test_sums_of_features_refuse_a_window(name):
    with pytest.raises(ValueError, match="no window; use a mechanism with scores"):
        apply(name, tensors(), Mask(causal=True, window=3))
