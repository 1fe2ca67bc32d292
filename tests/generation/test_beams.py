"""Beams find the continuations that score best, by the model's own distribution."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.generation import beam_search, generate, prompt_batch
from tests.generation.test_generate import log_probs, model_and_params


def continuations(model, params, prompt, words, tokens, end, penalty):
    """Every continuation that ends, or has all its tokens, with its score."""
    scores = {}
    for ids in itertools.product(range(words), repeat=tokens):
        size = ids.index(end) + 1 if end in ids else tokens
        scores[ids[:size]] = None
    longest = np.stack([[*prompt, *ids, *[0] * (tokens - len(ids))] for ids in scores])
    batch = prompt_batch(
        jnp.asarray(longest), jnp.broadcast_to(jnp.arange(longest.shape[1]), longest.shape)
    )
    apply = jax.jit(lambda params: model.apply({"params": params}, batch, method="log_probs"))
    nats = np.asarray(apply(params))
    for row, ids in enumerate(scores):
        places = len(prompt) - 1 + np.arange(len(ids))
        scores[ids] = nats[row, places, list(ids)].sum() / ((5 + len(ids)) / 6) ** penalty
    return scores


SHARED = {"model.num_layers": 2, "model.share_layers": True}


@pytest.mark.parametrize(
    ("words", "tokens", "width", "ranks", "penalty", "settings"),
    [
        (3, 2, 3, 3, 2.0, SHARED),
        pytest.param(5, 3, 80, 10, 2.0, {"model.num_layers": 1}, marks=pytest.mark.slow),
        pytest.param(5, 3, 80, 10, 0.0, SHARED, marks=pytest.mark.slow),
    ],
)
def test_wide_beams_find_the_best_continuations_of_all(
    words, tokens, width, ranks, penalty, settings
):
    model, params = model_and_params(words, **settings)
    prompts = [np.array([1, 2, 1]), np.array([2])]
    options = {
        "max_new_tokens": tokens,
        "num_beams": width,
        "eos_token_id": 0,
        "length_penalty": penalty,
    }
    found = beam_search(model, params, prompts, **options)
    for row, prompt in enumerate(prompts):
        scores = continuations(model, params, prompt, words, tokens, 0, penalty)
        best = sorted(scores, key=scores.get, reverse=True)
        for rank in range(ranks):
            ids = tuple(found.tokens[row, rank, : found.lengths[row, rank]])
            np.testing.assert_allclose(found.scores[row, rank], scores[best[rank]], atol=1e-5)
            np.testing.assert_allclose(scores[ids], scores[best[rank]], atol=1e-5)


def test_one_beam_is_the_greedy_choice_and_more_are_no_worse():
    model, params = model_and_params(7, **{"model.num_layers": 1, "model.scan": True})
    prompts = [np.random.default_rng(5).integers(0, 7, length) for length in (2, 5, 3)]
    greedy = np.stack(list(generate(model, params, prompts, max_new_tokens=8, temperature=0.0)), 1)
    one = beam_search(model, params, prompts, max_new_tokens=8, num_beams=1, eos_token_id=6)
    for row in range(3):
        size = one.lengths[row, 0]
        np.testing.assert_array_equal(one.tokens[row, 0, :size], greedy[row, :size])
        assert size == 8 or one.tokens[row, 0, size - 1] == 6
        assert 6 not in one.tokens[row, 0, : size - 1]
    wide = beam_search(model, params, prompts, max_new_tokens=8, num_beams=4, eos_token_id=6)
    assert (wide.scores[:, 0] >= one.scores[:, 0] - 1e-5).all()
    with pytest.raises(UserError, match="use at least 1 and at least 0"):
        beam_search(model, params, prompts, max_new_tokens=8, num_beams=0, eos_token_id=6)


@pytest.mark.slow
def test_beams_of_an_encoder_decoder_keep_to_their_own_source():
    model, params = model_and_params(
        7, **{"model.num_layers": 1, "model.architecture": "encoder_decoder"}
    )
    rng = np.random.default_rng(6)
    sources, start = [rng.integers(0, 7, length) for length in (4, 6)], np.array([0])
    options = {"max_new_tokens": 5, "num_beams": 3, "eos_token_id": 0}
    together = beam_search(model, params, [start] * 2, sources=sources, **options)
    for row, source in enumerate(sources):
        alone = beam_search(model, params, [start], sources=[source], **options)
        np.testing.assert_array_equal(alone.tokens[0, 0], together.tokens[row, 0])
        ids = together.tokens[row, 0, : together.lengths[row, 0]]
        (whole,) = log_probs(model, params, [np.concatenate([start, ids])], [source])
        score = whole[np.arange(len(ids)), ids].sum()
        np.testing.assert_allclose(score, together.scores[row, 0], atol=1e-4)
