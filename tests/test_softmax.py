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

from lm.softmax import WEIGHTINGS

EVERY = pytest.mark.parametrize("name", WEIGHTINGS)
NORMALISED = [name for name, record in WEIGHTINGS.items() if record.normalised]
SHIFT_INVARIANT = [name for name, record in WEIGHTINGS.items() if record.shift_invariant]


def apply(name, scores, where=None, **options):
    record = WEIGHTINGS[name]
    learned = dict.fromkeys(record.learned, 0.3)
    return record.apply(scores, where, **learned, **options)


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


@pytest.mark.parametrize("name", NORMALISED)
@settings(max_examples=60, deadline=None)
@given(scores=ROWS, where=MASKS)
def test_rows_with_a_visible_place_sum_to_one(name, scores, where):
    weights = np.asarray(jitted(name)(scores, where), np.float64)
    visible = where.any(-1)
    np.testing.assert_allclose(weights.sum(-1)[visible], 1.0, atol=2e-6)
    assert (weights >= 0).all()


@EVERY
@settings(max_examples=60, deadline=None)
@given(scores=ROWS, where=MASKS)
def test_masked_places_are_exactly_zero_and_nothing_is_nan(name, scores, where):
    weights = np.asarray(jitted(name)(scores, where))
    assert np.isfinite(weights).all()
    assert (weights[~where] == 0).all()


@EVERY
def test_a_masked_place_equals_a_place_that_is_not_there(name):
    scores = some_scores()
    where = np.ones_like(scores, bool)
    where[:, 5:] = False
    np.testing.assert_allclose(
        apply(name, scores, where)[:, :5], apply(name, scores[:, :5]), atol=1e-7
    )


@EVERY
def test_an_empty_row_gives_zeros_and_zero_gradient(name):
    scores, where = some_scores(), some_mask()
    where[2] = False

    def total(scores):
        return jnp.sum(jnp.sin(apply(name, scores, where)) * scores)

    assert (np.asarray(apply(name, scores, where))[2] == 0).all()
    gradient = np.asarray(jax.grad(total)(scores))
    assert np.isfinite(gradient).all()
    assert (gradient[2] == 0).all()
    masked = jax.grad(lambda s: jnp.sum(jnp.square(apply(name, s, where))))(scores)
    assert (np.asarray(masked)[~where] == 0).all()


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_adding_a_constant_to_a_row_changes_nothing(name):
    scores = some_scores()
    np.testing.assert_allclose(apply(name, scores), apply(name, scores + 8.0), atol=2e-6)


@EVERY
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32_and_returned_in_its_own_type(name, dtype):
    scores = jnp.asarray(some_scores(), dtype)
    weights = apply(name, scores)
    assert weights.dtype == dtype
    expected = apply(name, scores.astype(jnp.float32)).astype(dtype)
    np.testing.assert_array_equal(np.asarray(weights, np.float32), np.asarray(expected, np.float32))


@EVERY
def test_gradients_agree_with_finite_differences_in_float64(name):
    with jax.enable_x64(True):
        scores, where = some_scores(dtype=np.float64), some_mask()
        direction = some_scores(seed=2, dtype=np.float64)
        value = some_scores(seed=3, dtype=np.float64)

        def total(scores):
            return jnp.sum(apply(name, scores, where) * value)

        step = 1e-6
        numeric = (total(scores + step * direction) - total(scores - step * direction)) / (2 * step)
        exact = jnp.sum(jax.grad(total)(scores) * direction)
        np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-8)


@EVERY
def test_jit_and_vmap_change_nothing(name):
    scores, where = some_scores((3, 4, 7)), some_mask((3, 4, 7))
    plain = apply(name, scores, where)
    compiled = jitted(name)(scores, where)
    mapped = jax.vmap(lambda s, w: apply(name, s, w))(scores, where)
    np.testing.assert_allclose(compiled, plain, atol=1e-6)
    np.testing.assert_allclose(mapped, plain, atol=1e-6)


@EVERY
def test_facts_about_zeros_are_true(name):
    weights = np.asarray(apply(name, some_scores(scale=5.0)))
    assert (weights == 0).any() == WEIGHTINGS[name].sparse


def test_softmax_equals_scipy_in_float64():
    with jax.enable_x64(True):
        scores = some_scores(dtype=np.float64)
        np.testing.assert_allclose(
            apply("softmax", scores), scipy.special.softmax(scores, axis=-1), rtol=1e-14
        )


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


def exact_threshold(scores, alpha):
    """tau by bisection in float64: the oracle for the entmax family, [..., 1]."""
    z = (alpha - 1.0) * scores.astype(np.float64)
    low, high = z.max(-1, keepdims=True) - 1.0, z.max(-1, keepdims=True)
    for _ in range(200):
        middle = (low + high) / 2
        total = np.sum(np.maximum(z - middle, 0) ** (1 / (alpha - 1)), -1, keepdims=True)
        low, high = np.where(total > 1, middle, low), np.where(total > 1, high, middle)
    return z, low


@pytest.mark.parametrize(("name", "alpha"), [("sparsemax", 2.0), ("entmax15", 1.5)])
@pytest.mark.parametrize("size", [1, 2, 33, 2000])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_entmax_agrees_with_bisection(name, alpha, size, scale):
    scores = some_scores((5, size), scale)
    scores[0] = scores[0, 0]
    z, tau = exact_threshold(scores, alpha)
    expected = np.maximum(z - tau, 0) ** (1 / (alpha - 1))
    np.testing.assert_allclose(apply(name, scores), expected, atol=2e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(apply(name, scores.astype(np.float64)), expected, atol=1e-12)


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


@pytest.mark.parametrize("name", ["softmax", "entmax15", "sigmoid"])
def test_second_derivatives_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        scores = np.array([0.3, -0.1, 0.25, 0.0])
        value = np.array([1.0, -2.0, 0.5, 3.0])
        gradient = jax.grad(lambda s: jnp.sum(apply(name, s) * value))
        hessian = jax.jacobian(gradient)(scores)
        step = 1e-6
        for column in range(4):
            shift = step * np.eye(4)[column]
            numeric = (gradient(scores + shift) - gradient(scores - shift)) / (2 * step)
            np.testing.assert_allclose(hessian[:, column], numeric, atol=1e-7)
