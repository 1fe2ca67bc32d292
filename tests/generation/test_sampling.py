"""Which tokens may be drawn, and by which random numbers: those of the request, not of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.generation import beam_search, generate, sample
from lm.generation.sample import SamplingParams, request_keys
from tests.generation.test_generate import model_and_params

EQUAL = np.full(10, 0.1)
KEYS = jax.random.split(jax.random.key(0), 300)


def drawn(probabilities, **options):
    """All tokens that are drawn in 300 times."""
    log_probs = jnp.log(jnp.asarray(probabilities, jnp.float32))
    return set(np.asarray(jax.vmap(lambda key: sample(log_probs, key, **options))(KEYS)).tolist())


@pytest.mark.parametrize(
    ("probabilities", "options", "kept"),
    [
        (EQUAL, {"top_k": 2}, {0, 1}),
        (EQUAL, {"top_k": 2**40}, set(range(10))),
        (EQUAL, {"top_p": 0.2}, {0, 1}),
        (EQUAL, {"top_p": 0.25}, {0, 1, 2}),
        (EQUAL, {"top_k": 5, "top_p": 0.3, "min_p": 1.0}, {0, 1}),
        ([0.4, 0.3, 0.2, 0.1], {"top_k": 2, "top_p": 0.5}, {0}),
        ([0.1, 0.2, 0.3, 0.4], {"top_k": 3, "top_p": 0.7}, {2, 3}),
        ([0.1, 0.3, 0.3, 0.3], {"top_k": 2}, {1, 2}),
        ([0.1, 0.3, 0.3, 0.3], {"top_p": 0.6}, {1, 2}),
        ([0.2, 0.4, 0.0, 0.4], {"min_p": 0.5}, {0, 1, 3}),
        ([0.2, 0.4, 0.4], {"min_p": 1.0}, {1, 2}),
    ],
)
def test_of_equal_tokens_the_first_are_kept_and_no_more_than_asked_for(
    probabilities, options, kept
):
    assert drawn(probabilities, **options) == kept


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-39, 1.1e-38, 1.2e-38, 5e-37, 1e-20])
def test_the_least_temperatures_take_the_likeliest_token(temperature):
    unlikely = jnp.array([-300.0, -290.0, -1e-3, -jnp.inf, -7.0])
    found = [int(sample(p, KEYS[0], temperature=temperature)) for p in (unlikely, unlikely - 300)]
    assert found == [2, 2]


def test_the_largest_temperatures_draw_all_possible_tokens_alike():
    assert drawn([0.0, 1e-30, 0.9, 0.1], temperature=3e38) == {1, 2, 3}


@pytest.mark.parametrize(
    "options",
    [
        *({name: value} for name in vars(SamplingParams()) for value in (float("nan"), -1)),
        *({name: float("inf")} for name in ("temperature", "top_p", "min_p")),
        {"temperature": 1e39},
        {"top_p": 1.5},
        {"min_p": 2.0},
    ],
)
def test_a_number_that_is_out_of_range_is_one_line(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} = .* must be") as error:
        SamplingParams(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "length_penalty": float("nan")},
        {"num_beams": 2, "length_penalty": float("inf")},
        {"num_beams": 2, "length_penalty": 1e30},
        {"num_beams": 2**40},
        {"num_beams": 2**24},
    ],
)
def test_a_search_beyond_what_can_be_computed_is_one_line(options):
    model, params = model_and_params(**{"model.num_layers": 1})
    with pytest.raises(UserError, match=r"use at (most|least)") as error:
        beam_search(model, params, [np.array([1])], max_new_tokens=4, eos_token_id=0, **options)
    assert "\n" not in str(error.value)


def test_a_model_whose_probabilities_are_no_numbers_writes_nothing():
    nothing = jnp.full(4, jnp.nan)
    assert {int(sample(nothing, KEYS[0], temperature=t)) for t in (0.0, 1.0)} == {-1}
    model, params = model_and_params(**{"model.num_layers": 1})
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(UserError, match="probabilities are NaN"):
        list(generate(model, broken, [np.array([1])], max_new_tokens=1))
    with pytest.raises(UserError, match="probabilities are NaN"):
        beam_search(model, broken, [np.array([1])], max_new_tokens=1, num_beams=2, eos_token_id=0)


THE, OTHER, LONG = np.array([1, 2, 3]), np.array([9]), np.arange(20)


def continued(prompts, tokens=6, **options):
    """The continuation of each prompt."""
    model, params = model_and_params(**{"model.num_layers": 1})
    return np.stack(list(generate(model, params, prompts, max_new_tokens=tokens, **options)), 1)


def test_a_seeded_continuation_is_the_same_whatever_stands_beside_it():
    alone = continued([THE])[0]
    np.testing.assert_array_equal(continued([THE, OTHER])[0], alone)
    np.testing.assert_array_equal(continued([OTHER, THE], seed=0)[1], alone)
    np.testing.assert_array_equal(continued([LONG, THE], tokens=4)[1], alone[:4])


def test_equal_prompts_draw_apart_in_one_call_and_in_several():
    one, other = continued([THE] * 2)
    assert (one != other).any()
    np.testing.assert_array_equal(continued([OTHER, THE], repeats=[0, 1])[1], other)
    assert (continued([THE, OTHER], seed=1)[0] != one).any()


def test_the_keys_of_requests_differ_by_seed_tokens_source_and_repeat():
    asked = [(THE,), (THE,), (LONG,), (THE, OTHER), (THE, LONG), (np.array([1, 2]), np.array([3]))]
    keys = [jax.random.key_data(request_keys(seed, asked)) for seed in (0, 1)]
    assert len({each.tobytes() for each in np.concatenate(keys)}) == 12
