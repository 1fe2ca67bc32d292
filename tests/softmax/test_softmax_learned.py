"""An option can be learned: it starts at its value, stays in its range, and is not decayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.attention import Mask, ScoreAttention, attend
from lm.attention.base import LayerContext
from lm.config import override
from lm.model.resolve import model_config
from lm.softmax import WEIGHTINGS
from lm.training.annealing import anneal
from lm.training.optimizer import decayed

LEARNED = [(name, option) for name, r in WEIGHTINGS.items() for option in r.learned]
LEARNABLE = [(name, option) for name, r in WEIGHTINGS.items() for option in r.learnable]
START = {"temperature": 0.7, "cap": 3.0, "bias": -1.0, "alpha": 1.25}


def tensors():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, 6, 3, 4)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize(("name", "option"), LEARNABLE)
def test_a_learned_option_starts_as_the_fixed_one_and_gets_a_gradient(name, option):
    options = {option: START[option]}
    module = ScoreAttention(weighting=name, options=options, learn=(option,))
    arguments = (*tensors(), Mask(causal=True), LayerContext(tensors()[0]))
    keys = {"params": jax.random.key(0), "softmax": jax.random.key(1)}
    variables = module.init(keys, *arguments)
    assert variables["params"][option].shape == (3,)
    assert not any(jax.tree.leaves(decayed(variables["params"])))
    record = WEIGHTINGS[name]
    if not record.random:
        query, key, value, mask, _ = arguments
        own = {each: start(jax.random.key(0), (3,)) for each, start in record.learned.items()}
        expected = attend(
            query, key, value, mask=mask, weighting=name, options=options, learned=own
        )
        np.testing.assert_allclose(module.apply(variables, *arguments), expected, atol=2e-6)

    def total(variables):
        rngs = {"softmax": jax.random.key(1)}
        return jnp.sum(jnp.sin(module.apply(variables, *arguments, rngs=rngs)))

    assert (np.asarray(jax.grad(total)(variables)["params"][option]) != 0).all()


@pytest.mark.parametrize(("name", "option"), LEARNABLE)
def test_any_number_is_a_point_of_the_range_and_back(name, option):
    limits = WEIGHTINGS[name].learnable[option]
    inside = np.asarray(limits.from_param(jnp.linspace(-8.0, 8.0, 9)))
    assert ((inside > limits.low) & (inside < limits.high)).all()
    np.testing.assert_allclose(
        limits.from_param(limits.to_param(START[option])), START[option], 1e-6
    )


@pytest.mark.parametrize(("name", "option"), [*LEARNABLE, *LEARNED])
def test_gradients_of_parameters_agree_with_finite_differences(name, option):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        scores, value = rng.normal(size=(2, 4, 3, 6)), rng.normal(size=(2, 4, 3, 6))
        where = rng.random(scores.shape) < 0.7

        record = WEIGHTINGS[name]
        others = {each: 0.5 for each in record.learned if each != option}

        def total(parameter):
            return jnp.sum(record.apply(scores, where, **others, **{option: parameter}) * value)

        start = (
            jnp.full((4, 1, 1), START.get(option, 0.5)) * jnp.linspace(0.9, 1.1, 4)[:, None, None]
        )
        gradient = jax.grad(total)(start)
        for head in range(4):
            step = 1e-6 * jnp.eye(4)[head][:, None, None]
            numeric = (total(start + step) - total(start - step)) / 2e-6
            np.testing.assert_allclose(gradient[head, 0, 0], numeric, atol=1e-8)


@pytest.mark.parametrize(
    "alpha", [pytest.param(1.001, marks=pytest.mark.slow), 1.05, 1.25, 1.5, 1.9]
)
def test_alpha_has_second_derivatives(alpha):
    with jax.enable_x64(True):
        scores, value = np.random.default_rng(0).normal(size=(2, 3, 5))
        slope = jax.grad(lambda a: jnp.sum(WEIGHTINGS["entmax"].apply(scores, alpha=a) * value))
        numeric = (slope(alpha + 1e-6) - slope(alpha - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(slope)(jnp.asarray(alpha)), numeric, rtol=1e-5)


def test_an_annealed_option_is_a_function_of_the_step_and_all_else_stays():
    config = override(
        default.get_config(),
        {"attention.weighting": "entmax", "attention.anneal": ("alpha", 1.0, 1.5, 4)},
    )
    mechanism = {"annealed_alpha": jnp.full(3, 7.0), "sink": jnp.full(3, 7.0)}
    params = {"stack": {"layer_0": {"attention": {"mechanism": mechanism}}}}
    for step, alpha in ((0, 1.0), (1, 1.125), (4, 1.5), (9, 1.5)):
        moved = anneal(model_config(config), params, jnp.array(step))
        found = moved["stack"]["layer_0"]["attention"]["mechanism"]
        np.testing.assert_allclose(found["annealed_alpha"], np.full(3, alpha))
        np.testing.assert_array_equal(found["sink"], 7.0)
