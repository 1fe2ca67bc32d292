"""Every weighting keeps the contract of `lm.softmax`, whatever its formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lm.softmax import WEIGHTINGS, entmax_threshold, sparse
from lm.softmax.oracles import oracle

EVERY = pytest.mark.parametrize("name", WEIGHTINGS)


def apply(name, scores, where=None, **options):
    record = WEIGHTINGS[name]
    learned = dict.fromkeys(record.learned, 0.3)
    return record.apply(scores, where, **(learned | options))


def some_scores(shape=(4, 7), scale=3.0, seed=0, dtype=np.float32):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)


def some_mask(shape=(4, 7), seed=1):
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[..., 0] = True
    return mask


ROWS = hnp.arrays(
    np.float32,
    (3, 6),
    elements=st.sampled_from([-1e4, -30.0, -1.0, 0.0, 0.5, 0.5000001, 1.0, 2.0, 30.0, 1e4]),
)


MASKS = hnp.arrays(bool, (3, 6))
jitted = functools.lru_cache(lambda name: jax.jit(lambda scores, where: apply(name, scores, where)))


@EVERY
@settings(max_examples=60, deadline=None)
@given(scores=ROWS, where=MASKS)
def test_weights_are_those_of_the_formula_sum_to_one_and_are_zero_where_masked(name, scores, where):
    record = WEIGHTINGS[name]
    weights = np.asarray(jitted(name)(scores, where))
    learned = dict.fromkeys(record.learned, 0.3)
    expected = oracle(name, scores, where, **learned)
    np.testing.assert_allclose(weights, expected, atol=1e-6, rtol=1e-6)
    assert np.isfinite(weights).all()
    assert (weights[~where] == 0).all()
    if record.normalised:
        sizes = np.abs(weights) if record.signed else weights
        sums = sizes.sum(-1, dtype=np.float64)
        np.testing.assert_allclose(sums[where.any(-1)], 1.0, atol=1e-6)
        assert (sizes >= 0).all()


def test_softcap_bounds_the_scores_and_tends_to_softmax():
    scores = np.array([[1e4, 0.0, -1e4]], np.float32)
    capped = np.log(np.asarray(apply("softcap", scores, cap=5.0)))
    assert capped.max() - capped.min() <= 10.0 + 1e-5
    scores = some_scores()
    np.testing.assert_allclose(
        apply("softcap", scores, cap=1e5), apply("softmax", scores), atol=1e-6
    )


def test_temperature_one_is_softmax():
    scores = some_scores()
    np.testing.assert_array_equal(
        apply("temperature", scores, temperature=1.0), apply("softmax", scores)
    )


def test_a_sink_is_softmax_times_sigmoid_of_lse_minus_sink():
    scores = some_scores()
    lse = scipy.special.logsumexp(scores, axis=-1, keepdims=True)
    expected = scipy.special.softmax(scores, axis=-1) * scipy.special.expit(lse - 0.7)
    actual = WEIGHTINGS["sink"].apply(scores, sink=0.7)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("sink", [0.0, 1.5, -90.0, 90.0])
def test_a_sink_is_one_more_key_with_value_zero(sink):
    scores = some_scores()
    with_key = np.concatenate([scores, np.full((4, 1), sink, np.float32)], axis=-1)
    expected = apply("softmax", with_key)[:, :-1]
    np.testing.assert_allclose(WEIGHTINGS["sink"].apply(scores, sink=sink), expected, atol=1e-6)
    if sink == 0.0:
        np.testing.assert_allclose(apply("off_by_one", scores), expected, atol=1e-6)


def test_sigmoid_depends_on_no_other_score_and_its_bias_on_the_visible_length():
    scores, where = some_scores(), some_mask()
    length = where.sum(-1, keepdims=True)
    expected = np.where(where, scipy.special.expit(scores - np.log(length)), 0.0)
    np.testing.assert_allclose(apply("sigmoid", scores, where), expected, atol=1e-6)
    jacobian = np.asarray(jax.jacobian(lambda s: apply("sigmoid", s))(scores[0]))
    assert (jacobian[~np.eye(7, dtype=bool)] == 0).all()


@pytest.mark.parametrize(
    ("alpha", "size"),
    [
        pytest.param(alpha, size, marks=() if size == 33 or alpha == 1.25 else pytest.mark.slow)
        for alpha in (1.001, 1.25, 1.5, 2.0)
        for size in (1, 33, 700)
    ],
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_entmax_agrees_with_bisection(alpha, size, scale):
    scores = some_scores((5, size), scale)
    scores[0], scores[1] = scores[0, 0], np.round(scores[1])
    expected = oracle("entmax", scores, alpha=alpha)
    for form in (alpha, jnp.full((5, 1), alpha)):
        np.testing.assert_allclose(apply("entmax", scores, alpha=form), expected, atol=1e-6)
    with jax.enable_x64(True):
        double = apply("entmax", scores.astype(np.float64), alpha=jnp.full((5, 1), alpha))
        np.testing.assert_allclose(double, expected, atol=1e-12)


@pytest.mark.parametrize("rows", [8, 11])
def test_blocks_of_rows_agree_with_the_whole_array(rows, monkeypatch):
    scores = some_scores((rows, 3, 40))
    alpha = jnp.linspace(1.1, 1.9, 3)[:, None]
    whole = [apply("sparsemax", scores), apply("entmax", scores, alpha=alpha)]
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(entmax_threshold, "_BLOCK_BYTES", 40 * 4 * 4)
    jaxpr = jax.make_jaxpr(WEIGHTINGS["sparsemax"].apply)(scores)
    assert "scan" in str(jaxpr)
    blocked = [apply("sparsemax", scores), apply("entmax", scores, alpha=alpha)]
    for a, b in zip(blocked, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-7)


def test_entmax_at_one_is_softmax_and_not_defined_at_zero():
    scores = some_scores()
    np.testing.assert_array_equal(apply("entmax", scores, alpha=1.0), apply("softmax", scores))
    with pytest.raises(ValueError, match="not above 0"):
        apply("entmax", scores, alpha=0.0)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.3])
def test_alpha_relu_at_the_threshold_of_entmax_is_entmax(alpha):
    scores = some_scores(dtype=np.float32)
    weights = np.asarray(apply("entmax", scores, alpha=alpha), np.float64)
    tau = ((alpha - 1) * scores - weights ** (alpha - 1)).max(
        -1, where=weights > 0, initial=-np.inf
    )
    actual = apply("alpha_relu", scores, alpha=alpha, tau=tau[:, None].astype(np.float32))
    np.testing.assert_allclose(actual, weights, atol=2e-6)
    np.testing.assert_allclose(apply("alpha_relu", np.zeros((2, 9), np.float32)).sum(-1), 1.0)


def test_sparsemax_is_a_projection():
    once = apply("sparsemax", some_scores())
    np.testing.assert_allclose(apply("sparsemax", once), once, atol=1e-6)


def test_sparsemax_jacobian_is_the_centred_support():
    scores = some_scores((7,), 0.5)
    support = np.asarray(apply("sparsemax", scores)) > 0
    assert support.sum() >= 2
    expected = np.diag(support) - np.outer(support, support) / support.sum()
    np.testing.assert_allclose(
        jax.jacobian(lambda s: apply("sparsemax", s))(scores), expected, atol=1e-6
    )


def test_log_length_and_ssmax_depend_on_the_visible_length():
    scores, where = some_scores(), some_mask()
    length = where.sum(-1, keepdims=True)
    for name, factor, options in (
        ("log_length", np.log(length) / np.log(5), {"reference_length": 5.0}),
        ("ssmax", 0.3 * np.log(length), {}),
    ):
        expected = apply("softmax", (scores * factor).astype(np.float32), where)
        np.testing.assert_allclose(apply(name, scores, where, **options), expected, atol=1e-6)
        longer = apply(name, np.pad(scores, ((0, 0), (0, 9)), constant_values=-1e4), **options)
        assert np.abs(longer[:, :7] - apply(name, scores, **options)).max() > 0.01
    at_e = WEIGHTINGS["ssmax"].apply(scores, scale=1 / np.log(7))
    np.testing.assert_allclose(at_e, apply("softmax", scores), atol=1e-6)


def test_the_last_chosen_of_top_k_is_found_by_counting_as_by_sorting(monkeypatch):
    z = np.random.default_rng(0).normal(size=(8, 300)).astype(np.float32)
    z[1], z[2], z[3], z[4, 5:], z[5] = np.round(z[1]), 0.0, -0.0, -np.inf, z[5] * 1e30
    z[3, 1::2] = 0.0
    for k in (1, 2, 7, 32, 299):
        by_sorting = sparse._last_chosen(jnp.asarray(z), k)
        with monkeypatch.context() as patch:
            patch.setattr(sparse, "platform", lambda: "tpu")
            jax.tree.map(
                np.testing.assert_array_equal, sparse._last_chosen(jnp.asarray(z), k), by_sorting
            )


def test_top_k_chooses_one_of_a_zero_and_a_negative_zero():
    np.testing.assert_array_equal(apply("top_k", jnp.asarray([[-0.0, 0.0]]), k=1), [[1.0, 0.0]])


def test_top_k_chooses_exactly_k_the_first_of_equal_ones():
    scores = np.array([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0] * 5], np.float32)
    chosen = np.asarray(apply("top_k", scores, k=2)) > 0
    np.testing.assert_array_equal(chosen, [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    scores = some_scores()
    for k in (7, 100):
        np.testing.assert_array_equal(apply("top_k", scores, k=k), apply("softmax", scores))
    gradient = jax.grad(lambda s: jnp.sum(apply("top_k", s, k=3) ** 2))(scores)
    chosen = np.asarray(apply("top_k", scores, k=3)) > 0
    assert (chosen.sum(-1) == 3).all()
    assert (np.asarray(gradient)[~chosen] == 0).all()
    assert (np.asarray(gradient)[chosen] != 0).all()


def test_the_largest_place_under_gumbel_noise_is_distributed_as_softmax():
    scores = jnp.array([1.0, 0.0, -1.0, 2.0])
    draws = 40_000
    weights = WEIGHTINGS["gumbel_softmax"].apply(
        jnp.broadcast_to(scores, (draws, 4)), key=jax.random.key(0), temperature=0.5, hard=True
    )
    assert set(np.unique(weights)) == {0.0, 1.0}
    assert (np.asarray(weights).sum(-1) == 1).all()
    expected = np.asarray(apply("softmax", scores))
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(np.asarray(weights).mean(0) - expected) < 4 * error).all()


def test_hard_gumbel_has_the_soft_gradient_and_empty_rows_stay_empty():
    scores, where, value = some_scores(), some_mask(), some_scores(seed=3)
    where[2] = False
    gradients = [
        jax.grad(
            lambda s, hard=hard: jnp.sum(
                apply("gumbel_softmax", s, where, key=jax.random.key(1), hard=hard) * value
            )
        )(scores)
        for hard in (True, False)
    ]
    np.testing.assert_array_equal(*gradients)
    weights = apply("gumbel_softmax", scores, where, key=jax.random.key(1), hard=True)
    assert (np.asarray(weights)[2] == 0).all()


def test_taylor_is_close_to_softmax_near_zero_and_positive():
    scores = some_scores(scale=0.01)
    np.testing.assert_allclose(apply("taylor", scores), apply("softmax", scores), atol=1e-6)
    assert (np.asarray(apply("taylor", some_scores(scale=100.0))) > 0).all()


def test_cog_is_softmax_of_absolute_scores_with_their_signs():
    scores = some_scores()
    expected = np.sign(scores) * scipy.special.softmax(np.abs(scores), axis=-1)
    np.testing.assert_allclose(apply("cog", scores), expected, atol=1e-6)


def test_a_rectifier_depends_on_no_other_score():
    for name in ("relu", "relu_squared"):
        jacobian = np.asarray(jax.jacobian(lambda s, name=name: apply(name, s))(some_scores((7,))))
        assert (jacobian[~np.eye(7, dtype=bool)] == 0).all()


def test_softpick_rectifies_the_numerator_and_not_the_sum():
    scores = np.log(np.array([[3.0, 1.5, 0.5, 1.0]], np.float32))
    np.testing.assert_allclose(apply("softpick", scores), [[2 / 3, 1 / 6, 0.0, 0.0]], atol=1e-6)
    assert (np.asarray(apply("softpick", -np.abs(some_scores()))) == 0).all()
    positive = np.abs(some_scores()) + 0.1
    np.testing.assert_allclose(np.sum(apply("softpick", positive), -1), 1.0, atol=1e-6)


def test_softpick_has_one_slope_where_its_two_computations_meet():
    def slope(score):
        scores = jnp.array([[score, 0.5, -1.0]])
        return float(jax.grad(lambda s: apply("softpick", s)[0, 0])(scores)[0, 0])

    assert slope(1.0) == pytest.approx(slope(1.0 + 1e-6), abs=1e-5)


def test_asentmax_is_the_entmax_at_a_rate_of_zero_and_sharper_in_longer_rows():
    scores = some_scores()
    plain = apply("entmax", scores, alpha=1.5)
    np.testing.assert_allclose(apply("asentmax", scores, beta=0.0, gamma=2.0), plain, atol=1e-6)
    for n in (7, 500):
        row = np.pad(scores, ((0, 0), (0, n - 7)), constant_values=-1e4)
        scaled = (1.0 + 0.5 * np.log(n) ** 2) * row
        expected = apply("entmax", scaled.astype(np.float32), alpha=1.25)
        actual = apply("asentmax", row, alpha=1.25, beta=0.5, gamma=2.0)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert float(apply("asentmax", np.full((1, 1), 3.0, np.float32))[0, 0]) == 1.0
