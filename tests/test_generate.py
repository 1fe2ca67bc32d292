"""Generation with a cache is the model's own distribution, for any prompts together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.config import override
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.generate import generate, prompt_batch, prompt_ids, sample, stream
from lm.step import build_model

V = 256


def model_and_params(**settings):
    config = override(
        default.get_config(),
        {"model.layers": 2, "model.features": 16, "model.heads": 4, "model.max_length": 40}
        | settings,
    )
    model = build_model(config, V)
    batch = prompt_batch(jnp.zeros((1, 4), int), jnp.arange(4)[None])
    params = model.init(jax.random.key(0), batch, False, method="loss")["params"]
    return model, jax.tree.map(lambda p: p * 5, params)


def log_probs(model, params, ids):
    batch = prompt_batch(jnp.asarray(ids)[None], jnp.arange(len(ids))[None])
    apply = jax.jit(lambda params: model.apply({"params": params}, batch, method="log_probs"))
    return np.asarray(apply(params))[0]


@pytest.mark.parametrize(
    ("positions", "scan"),
    [("learned", False), ("rotary", False), ("alibi", True)],
)
def test_cached_decoding_gives_the_log_probabilities_of_the_whole(positions, scan):
    model, params = model_and_params(**{"model.positions": positions, "model.scan": scan})
    ids = np.random.default_rng(0).integers(0, V, 12)
    whole = log_probs(model, params, ids)
    variables = {"params": params}
    cached = []

    @jax.jit
    def decode(variables, token, place):
        batch = prompt_batch(token[None, None], place[None, None])
        decoding = {"offset": place, "cache_length": 12}
        return model.apply(variables, batch, method="log_probs", mutable=["cache"], **decoding)

    for place in range(12):
        step, updated = decode(variables, jnp.asarray(ids[place]), jnp.asarray(place))
        variables = {"params": params, **updated}
        cached.append(np.asarray(step)[0, 0])
    np.testing.assert_allclose(cached, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "weighting"),
    [
        ("learned", "softmax"),
        ("alibi", "softmax"),
        ("rotary", "entmax15"),
        ("rotary", "sink"),
        ("rotary", "log_length"),
    ],
)
def test_greedy_tokens_are_the_uncached_models_for_prompts_of_different_lengths(
    positions, weighting
):
    model, params = model_and_params(
        **{"model.positions": positions, "attention.weighting": weighting, "model.layers": 1}
    )
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, V, length) for length in (3, 9)]
    drawn = np.stack(list(generate(model, params, prompts, tokens=6, temperature=0.0)), axis=1)
    for prompt, continuation in zip(prompts, drawn, strict=True):
        whole = log_probs(model, params, np.concatenate([prompt, continuation]))
        for place, token in enumerate(continuation, start=len(prompt) - 1):
            assert whole[place, token] >= whole[place].max() - 1e-5


def test_a_seed_draws_the_same_tokens_again_and_prompts_draw_apart():
    model, params = model_and_params()
    prompts = [np.array([1, 2, 3])] * 2

    def draw(seed):
        return np.stack(list(generate(model, params, prompts, tokens=8, seed=seed)))

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()
    assert (draw(0)[:, 0] != draw(0)[:, 1]).any()


def frequencies(log_probs, **options):
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: sample(log_probs, key, **options))(keys)
    return np.bincount(drawn, minlength=log_probs.size) / 4000


P = np.array([0.5, 0.25, 0.15, 0.07, 0.03])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 5),
        ({"top_k": 2}, 2),
        ({"top_k": 99}, 5),
        ({"top_p": 0.7}, 2),
        ({"top_p": 0.0}, 1),
        ({"min_p": 0.2}, 3),
        ({"min_p": 1.0}, 1),
        ({"top_k": 3, "min_p": 0.45}, 2),
    ],
)
def test_samples_follow_the_kept_probabilities(options, kept):
    expected = np.where(np.arange(5) < kept, P, 0) / P[:kept].sum()
    np.testing.assert_allclose(frequencies(jnp.log(P), **options), expected, atol=0.03)


def test_temperature_flattens_and_zero_takes_the_likeliest():
    flat = P**0.5 / (P**0.5).sum()
    np.testing.assert_allclose(frequencies(jnp.log(P), temperature=2.0), flat, atol=0.03)
    assert frequencies(jnp.log(P), temperature=0.0)[0] == 1.0


def test_too_many_tokens_are_refused():
    model, params = model_and_params()
    with pytest.raises(UserError, match=r"need 41 positions, but the model has .* = 40"):
        list(generate(model, params, [np.array([1])], tokens=40))


def test_texts_stream_whole_characters_and_end_with_their_document():
    tokenizer = ByteTokenizer()
    texts = ["né!", "x"]
    encoded = [list(text.encode()) + [tokenizer.end] * 4 for text in texts]
    steps = [np.array([encoded[0][i], encoded[1][i]]) for i in range(5)]
    pieces = list(stream(tokenizer, ["a ", "b "], iter(steps)))
    assert "".join(pieces) == "a né!\n--------\nb x\n"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_prompts_open_with_the_document_token():
    ids = prompt_ids(ByteTokenizer(), ["ab", ""])
    assert [list(x) for x in ids] == [[255, 97, 98], [255]]
