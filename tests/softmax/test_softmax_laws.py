"""Every weighting obeys every law of `lm.softmax.laws`, and the laws catch those that do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.softmax import WEIGHTINGS
from lm.softmax.laws import LAWS, jax_subject

# What tests must choose: parameters of the learned kinds, and k below the number of places.
OPTIONS = {
    "ssmax": {"scale": 0.3},
    "sink": {"sink": 0.3},
    "top_k": {"k": 4},
    "entmax": {"alpha": 1.25},
    "asentmax": {"beta": 0.3, "gamma": 0.8},
    "temperature": {"temperature": 0.7},
}
SUBJECTS = {
    name: jax_subject(name, record, **OPTIONS.get(name, {})) for name, record in WEIGHTINGS.items()
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_law(name, law):
    check, tolerance = LAWS[law]
    violation = check(SUBJECTS[name])
    assert violation is None or violation <= tolerance


def _broken(change):
    """The softmax, with its weights or scores changed."""
    record = WEIGHTINGS["softmax"]
    return jax_subject("softmax", dataclasses.replace(record, apply=change(record.apply)))


BROKEN = {
    "formula, float32": lambda f: lambda s, w: f(s * 1.001, w),
    "formula, float64": lambda f: lambda s, w: f(s.astype(jnp.float32), w),
    "rows sum to one": lambda f: lambda s, w: f(s, w) * 1.001,
    "not negative": lambda f: lambda s, w: f(s, w) - 0.01,
    "masked is zero": lambda f: lambda s, w: f(s, w) + 1e-9,
    "masked is absent": lambda f: lambda s, w: f(s, None),
    "empty row": lambda f: lambda s, w: f(s, w) / jnp.sum(f(s, w), -1, keepdims=True),
    "one key": lambda f: lambda s, w: f(s, w) * 0.5,
    "1e4 is finite": lambda f: lambda s, w: jnp.exp(s) / jnp.sum(jnp.exp(s), -1, keepdims=True),
    "monotone": lambda f: lambda s, w: f(-s, w),
    "shuffled keys": lambda f: lambda s, w: f(s + jnp.arange(s.shape[-1]), w),
    "shift": lambda f: lambda s, w: f(s * s, w),
    "zeros as declared": lambda f: lambda s, w: jnp.round(f(s, w), 2),
    "gradient": lambda f: lambda s, w: f(s + jnp.round(10 * s), w),
    "half precision": lambda f: lambda s, w: f(s, w).astype(jnp.float32),
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_softmax_breaks_the_law(law):
    check, tolerance = LAWS[law]
    violation = check(_broken(BROKEN[law]))
    assert violation is not None
    assert not violation <= tolerance


def test_parameters_and_learned_options_get_no_gradient_from_empty_rows():
    scores = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    where = np.zeros((3, 5), bool)
    masked = np.where(where, scores, -np.inf).astype(np.float32)
    for name, record in WEIGHTINGS.items():
        for option in (*record.learned, *record.learnable):
            others = {each: 0.5 for each in record.learned if each != option}
            gradient = jax.grad(
                lambda value, record=record, option=option, others=others: jnp.sum(
                    record.apply(masked, where, **others, **{option: value})
                )
            )(jnp.asarray(1.3))
            assert gradient == 0, (name, option)


@pytest.mark.parametrize(
    ("name", "scores", "share"),
    [
        ("softmax", [0.0, 0.0, -1e4], 1.0),
        ("sigmoid", [float(np.log(3)), -1e4, -1e4], 1.0),
        ("relu", [1.0], 1.0),
        ("sparsemax", [0.0] * 100, 0.99),
        ("budget", [0.0] * 100, 0.99),
    ],
)
def test_some_row_comes_as_near_to_the_lipschitz_constant_as_it_is_said_to(name, scores, share):
    record = WEIGHTINGS[name]
    jacobian = np.asarray(jax.jacobian(record.apply)(jnp.asarray(scores)))
    size = max(np.abs(jacobian).sum(axis).max() for axis in (0, 1))
    assert size == pytest.approx(share * record.lipschitz(), rel=1e-3)
