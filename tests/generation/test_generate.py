"""Generation with a cache is the model's own distribution, for any prompts together."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.checkpoints.restored import Restored
from lm.config import override
from lm.data import ByteTokenizer
from lm.data.special_tokens import SpecialTokens, encoder_decoder_tokens
from lm.errors import UserError
from lm.evaluation.prompting.query_encoder import query_encoder
from lm.evaluation.prompting.template import Query
from lm.finetuning import max_text_len
from lm.finetuning.adapted import max_text_len_of
from lm.generation import generate, prompt_batch, prompt_ids, sample, stream
from lm.generation.decode import SamplingParams, StaticModel, _decode, _prefill
from lm.generation.prompts import pad_prompts
from lm.training.build_model import build_model

V = 256


@functools.cache  # one model for all that ask for the same one: each is compiled anew
def model_and_params(words=V, **settings):
    config = override(
        default.get_config(),
        {"model.num_layers": 2, "model.d_model": 16, "model.num_heads": 4, "model.max_seq_len": 40}
        | settings,
    )
    model = build_model(config, words)
    batch = prompt_batch(jnp.zeros((1, 4), int), jnp.arange(4)[None])
    if model.config.encoder is not None:
        memory = {"encoder_inputs": batch.inputs, "encoder_segments": batch.segments}
        batch = batch.replace(**memory, encoder_positions=batch.positions)
    init = jax.jit(lambda key: model.init(key, batch, False, method="loss")["params"])
    return model, jax.tree.map(lambda p: p * 5, init(jax.random.key(0)))


def log_probs(model, params, texts, sources=None, prefixes=None):
    """Of each text [L, V], without a cache, all in one batch: what stands behind is not seen."""
    inputs, _, places = padded(texts)
    batch = prompt_batch(inputs, places)
    if sources is not None:
        names = ("encoder_inputs", "encoder_segments", "encoder_positions")
        batch = batch.replace(**dict(zip(names, padded(sources), strict=True)))
    if prefixes is not None:
        batch = batch.replace(prefix=places < jnp.asarray(prefixes)[:, None])
    apply = jax.jit(lambda params: model.apply({"params": params}, batch, method="log_probs"))
    found = np.asarray(apply(params))
    return [rows[: len(text)] for rows, text in zip(found, texts, strict=True)]


def padded(texts):
    """Words, segments and places, [B, L]."""
    length = max(map(len, texts))
    words = jnp.asarray([[*text, *[0] * (length - len(text))] for text in texts])
    places = jnp.broadcast_to(jnp.arange(length), words.shape)
    return words, (places < jnp.asarray([[len(text)] for text in texts])).astype(int), places


def assert_greedy(drawn, model, params, prompts, **given):
    """Each word drawn, [T, B], is the likeliest one of the model without a cache."""
    texts = [np.concatenate(pair) for pair in zip(prompts, np.stack(drawn, 1), strict=True)]
    for prompt, text, whole in zip(
        prompts, texts, log_probs(model, params, texts, **given), strict=True
    ):
        for place in range(len(prompt), len(text)):
            assert whole[place - 1, text[place]] >= whole[place - 1].max() - 1e-5


@pytest.mark.parametrize(
    ("positions", "scan"),
    [pytest.param("learned", False, marks=pytest.mark.slow), ("rotary", False), ("alibi", True)],
)
def test_cached_decoding_gives_the_log_probabilities_of_the_whole(positions, scan):
    model, params = model_and_params(**{"model.position_embedding": positions, "model.scan": scan})
    ids = np.random.default_rng(0).integers(0, V, 12)
    (whole,) = log_probs(model, params, [ids])
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
        pytest.param("learned", "softmax", marks=pytest.mark.slow),
        ("alibi", "softmax"),
        ("rotary", "entmax15"),
        pytest.param("rotary", "sink", marks=pytest.mark.slow),
        ("rotary", "log_length"),
    ],
)
def test_greedy_tokens_are_the_uncached_models_for_prompts_of_different_lengths(
    positions, weighting
):
    model, params = model_and_params(
        **{
            "model.position_embedding": positions,
            "attention.weighting": weighting,
            "model.num_layers": 1,
        }
    )
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, V, length) for length in (3, 9)]
    drawn = list(generate(model, params, prompts, max_new_tokens=6, temperature=0.0))
    assert_greedy(drawn, model, params, prompts)


def test_a_seed_draws_the_same_tokens_again_and_prompts_draw_apart():
    model, params = model_and_params()
    prompts = [np.array([1, 2, 3])] * 2

    def draw(seed):
        return np.stack(list(generate(model, params, prompts, max_new_tokens=8, seed=seed)))

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
        list(generate(model, params, [np.array([1])], max_new_tokens=40))


def test_learned_words_leave_fewer_positions_for_a_text():
    config = default.get_config()
    config.model.update(num_layers=1, d_model=16, num_heads=2, max_seq_len=40)
    config.data.seq_len = 36
    config.finetuning.update(method="prompt", num_virtual_tokens=4)
    model = build_model(config, 5)
    assert max_text_len(config) == max_text_len_of(model) == 36
    with pytest.raises(UserError, match=r"need 37 positions, but .* = 40, 4 of them for virtual"):
        list(generate(model, None, [np.array([1])], max_new_tokens=36))
    assert (
        query_encoder(config, ByteTokenizer(), encoder_decoder_tokens(None, 255), (255,))(
            [Query("x" * 50, "y")]
        )[0]
        .rows[0]
        .inputs.size
        == 36
    )


def test_texts_stream_whole_characters_and_end_with_their_document():
    tokenizer = ByteTokenizer()
    texts = ["né!", "x"]
    encoded = [list(text.encode()) + [tokenizer.end] * 4 for text in texts]
    steps = [np.array([encoded[0][i], encoded[1][i]]) for i in range(5)]
    pieces = list(stream(tokenizer, ["a ", "b "], [[], []], iter(steps)))
    assert "".join(pieces) == "a né!\n--------\nb x\n"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_prompts_open_as_their_checkpoint_has_it_and_after_training_on_texts_as_these_did():
    tokenizer = ByteTokenizer()
    tokenizer.start, tokenizer.specials = 7, SpecialTokens.closed_by((), 255)
    config = default.get_config()
    chats = default.get_config()
    chats.task.name = "instruction"
    for settings, step, opens in ((config, 0, []), (config, 3, [7]), (chats, 3, [])):
        run = Restored(settings, tokenizer, None, None, step)
        ids = prompt_ids(run.tokenizer, ["ab", ""], run.opens)
        assert [list(x) for x in ids] == [[*opens, 97, 98], opens or [7]]


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_encoder_decoder_answers_as_it_does_uncached_from_sources_of_different_lengths(scan):
    model, params = model_and_params(
        **{
            "model.architecture": "encoder_decoder",
            "model.position_embedding": "rotary",
            "model.scan": scan,
            "model.num_layers": 1 + scan,
            "cross_attention.weighting": "entmax15",
        }
    )
    rng = np.random.default_rng(2)
    sources = [rng.integers(0, V, length) for length in (3, 9)]
    prompts = [rng.integers(0, V, length) for length in (1, 2)]
    drawn = list(
        generate(model, params, prompts, max_new_tokens=5, temperature=0.0, sources=sources)
    )
    assert_greedy(drawn, model, params, prompts, sources=sources)


def test_a_prefix_language_model_sees_its_prompt_whole():
    model, params = model_and_params(**{"model.num_layers": 2})
    prompts = [np.random.default_rng(3).integers(0, V, length) for length in (4, 7)]
    drawn = list(generate(model, params, prompts, max_new_tokens=5, temperature=0.0, prefix=True))
    assert_greedy(drawn, model, params, prompts, prefixes=[4, 7])


def test_prompts_together_are_each_alone():
    model, params = model_and_params(**{"model.num_layers": 1})
    prompts = [np.random.default_rng(4).integers(0, V, length) for length in (2, 8)]
    together = np.stack(
        list(generate(model, params, prompts, max_new_tokens=4, temperature=0.0)), 1
    )
    for prompt, expected in zip(prompts, together, strict=True):
        alone = np.stack(
            list(generate(model, params, [prompt], max_new_tokens=4, temperature=0.0)), 1
        )
        np.testing.assert_array_equal(alone[0], expected)


def test_the_same_shapes_compile_once():
    model, params = model_and_params(**{"model.num_layers": 1})
    counts = []
    for seed in range(3):
        prompts = [np.random.default_rng(seed).integers(0, V, 3)]
        list(generate(model, params, prompts, max_new_tokens=4, seed=seed))
        counts.append((_prefill._cache_size(), _decode._cache_size()))
    assert counts[0] == counts[1] == counts[2]


def moved(function, *arguments):
    """The sizes of all arrays that a compiled function copies or turns."""
    text = function.lower(*arguments).compile().as_text()
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|transpose)\(", text)
    return {math.prod(map(int, shape.split(","))) for shape in shapes}


def test_no_token_copies_or_transposes_the_cache():
    """Of several prompts: with one, XLA's CPU compiler copies it, which takes no more time."""
    rows = 3
    model, params = model_and_params(**{"model.num_layers": 1})
    prompts = pad_prompts(model, [np.arange(9)] * rows, None, 5, 5, False)
    static, keys = (
        (StaticModel(model), SamplingParams(temperature=0.0)),
        jax.random.split(jax.random.key(0), rows),
    )
    drawn, cache = jax.eval_shape(functools.partial(_prefill, *static, 0), params, prompts, keys)
    sizes = {leaf.size for leaf in jax.tree.leaves(cache)}
    assert sizes.isdisjoint(moved(_decode, *static, 4, params, cache, prompts, drawn, 9, keys))
    # What does turn it is found.
    turning = jax.jit(lambda cache: jax.tree.map(lambda leaf: leaf.swapaxes(1, 2), cache))
    assert sizes <= moved(turning, cache)


SLOW_HEADS = [pytest.param(h, marks=pytest.mark.slow) for h in ("hierarchical", "class_factored")]


@pytest.mark.parametrize("head", ["adaptive", *SLOW_HEADS])
def test_heads_that_draw_by_themselves_draw_from_their_distribution(head):
    model, params = model_and_params(
        11, **{"model.num_layers": 1, "output.head": head, "output.tied": False}
    )
    prompts = [np.array([1, 2, 3])] * 500
    drawn = np.stack(list(generate(model, params, prompts, max_new_tokens=1)))[0]
    expected = np.exp(log_probs(model, params, prompts[:1])[0][-1])
    np.testing.assert_allclose(np.bincount(drawn, minlength=11) / 500, expected, atol=0.08)


def test_what_cannot_generate_says_so():
    model, params = model_and_params(**{"model.architecture": "encoder"})
    with pytest.raises(UserError, match="an encoder predicts masked tokens"):
        list(generate(model, params, [np.array([1])], max_new_tokens=4))


@pytest.mark.parametrize(
    ("stops", "expected"), [(["\n\n"], "a b"), (["zz", "b\n"], "a "), (["q"], "a b\n\nc")]
)
def test_a_stop_string_ends_its_text_and_is_never_shown(stops, expected):
    tokenizer = ByteTokenizer()
    texts = ["a b\n\nc", "x"]
    encoded = [list(text.encode()) + [tokenizer.end] * 8 for text in texts]
    steps = (np.array([encoded[0][i], encoded[1][i]]) for i in range(8))
    pieces = list(stream(tokenizer, ["", "> "], [[], []], steps, stops))
    assert "".join(pieces) == f"{expected}\n--------\n> x\n"
