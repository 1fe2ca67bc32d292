"""Weightings whose threshold is found by bisection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.softmax.oracles import oracle
from tests.softmax.test_softmax import apply, some_mask, some_scores


@pytest.mark.parametrize("alpha", [0.3, 0.999, 2.001, 2.25, 4.0])
def test_entmax_at_any_alpha_is_that_of_bisection_with_the_gradient_of_finite_differences(alpha):
    scores, where = some_scores((4, 33), 1.0), some_mask((4, 33))
    expected = oracle("entmax", scores, where, alpha=alpha)
    # Above 2 a weight near the threshold is a root of what rounding leaves of its distance.
    weights = apply("entmax", scores, where, alpha=alpha)
    np.testing.assert_allclose(weights, expected, atol=2e-6 if alpha < 3 else 5e-3)
    with jax.enable_x64(True):
        double = apply("entmax", scores.astype(np.float64), where, alpha=alpha)
        np.testing.assert_allclose(double, expected, atol=1e-9 if alpha < 3 else 1e-5)
        direction = np.random.default_rng(2).normal(size=(4, 33))

        def total(scores):
            return jnp.sum(apply("entmax", scores, alpha=alpha) * direction)

        row = jnp.asarray(scores, jnp.float64)
        gradient = jax.grad(total)(row)
        along = np.random.default_rng(3).normal(size=(4, 33))
        numeric = (total(row + 1e-7 * along) - total(row - 1e-7 * along)) / 2e-7
        np.testing.assert_allclose(jnp.sum(gradient * along), numeric, rtol=1e-5)


def test_an_array_of_alphas_beyond_two_is_refused():
    with pytest.raises(ValueError, match=r"from 1 .* to 2"):
        apply("entmax", some_scores(), alpha=jnp.full((4, 1), 2.25))


@pytest.mark.parametrize("alpha", [1.5, 2.0, 4.0])
def test_normmax_is_the_point_of_the_simplex_that_no_other_point_beats(alpha):
    scores = some_scores((1, 6), 0.5)[0]
    rng = np.random.default_rng(0)

    def value(p):
        return p @ scores - np.sum(np.abs(p) ** alpha, axis=-1) ** (1 / alpha)

    best = np.asarray(apply("normmax", scores, alpha=alpha), np.float64)
    others = rng.dirichlet(np.ones(6), 2000)
    shares = rng.random((2000, 1)) ** 3
    assert (value(best) >= value(best + shares * (others - best)) - 1e-7).all()


def test_a_budget_of_one_is_sparsemax_and_more_than_the_places_gives_all_of_them():
    scores = some_scores()
    np.testing.assert_allclose(
        apply("budget", scores, budget=1.0), apply("sparsemax", scores), atol=1e-6
    )
    for total in (0.5, 2.0, 3.5, 6.9):
        weights = np.asarray(apply("budget", scores, budget=total))
        np.testing.assert_allclose(weights.sum(-1), total, atol=1e-5)
        assert weights.max() <= 1.0
    np.testing.assert_array_equal(apply("budget", scores, budget=7.0), 1.0)
    masked = apply("budget", scores, some_mask(), budget=40.0)
    np.testing.assert_array_equal(masked, some_mask())
