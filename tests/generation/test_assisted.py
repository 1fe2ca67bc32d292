"""Speculative decoding draws from the large model's distribution, whatever the assistant is."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.generation import generate
from lm.generation.assisted import Assistant, AssistedDecoding, choose
from lm.generation.generate_command import Request, generate_texts
from lm.generation.sample import SamplingParams, filtered_logits
from tests.generation.test_generate import log_probs, model_and_params

SMALL = {"model.num_layers": 1}


def pair(vocab_size=5, num_tokens=2, **settings):
    """A model, its parameters, and an assistant that is another model, not a good one."""
    model, params = model_and_params(vocab_size, **{**SMALL, **settings})
    other, others = model_and_params(vocab_size, **{**SMALL, "model.num_heads": 2})
    others = jax.tree.map(lambda p: p * 0.8, others)
    return model, params, Assistant(other, others, num_tokens)


def decoded(model, params, prompts, assistant, **options):
    """The decoding, and its tokens [B, T]."""
    decoding = AssistedDecoding(model, params, prompts, assistant=assistant, **options)
    return decoding, np.stack(list(decoding), axis=1)


def exact(model, params, prompt, length, sampling):
    """The probabilities [V, V, ...] of continuations of a length, one token after the other."""
    size = model.vocab_size
    texts = [[*prompt, *rest] for rest in itertools.product(range(size), repeat=length)]
    shaped = jax.vmap(lambda p: jax.nn.softmax(filtered_logits(p, **vars(sampling))))
    found = np.ones(len(texts))
    for number, (text, rows) in enumerate(zip(texts, log_probs(model, params, texts), strict=True)):
        p = np.asarray(shaped(jnp.asarray(rows)), np.float64)
        for place in range(len(prompt), len(text)):
            found[number] *= p[place - 1, text[place]]
    return found / found.sum()


@pytest.mark.parametrize(
    ("sampling", "settings"),
    [
        (SamplingParams(), {}),
        pytest.param(SamplingParams(), {"attention.weighting": "entmax15"}, marks=pytest.mark.slow),
        (SamplingParams(temperature=0.7, top_k=4, top_p=0.9), {"attention.weighting": "entmax15"}),
        pytest.param(SamplingParams(min_p=0.2), {"output.head": "mixture"}, marks=pytest.mark.slow),
        pytest.param(
            SamplingParams(temperature=1.3),
            {"output.head": "adaptive", "output.tied": False, "attention.weighting": "sigmoid"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_continuations_have_the_frequencies_of_the_models_own_probabilities(sampling, settings):
    model, params, assistant = pair(**settings)
    prompt, draws, length = np.array([1, 2, 3]), 6000, 3
    _, tokens = decoded(
        model, params, [prompt] * draws, assistant, max_new_tokens=length, sampling=sampling
    )
    counts = np.zeros(5**length)
    np.add.at(counts, tokens @ 5 ** np.arange(length)[::-1], 1)
    expected = draws * exact(model, params, prompt, length, sampling)
    assert counts[expected == 0].sum() == 0
    # What is expected less than five times is one class.
    rare = expected < 5
    observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    kept = expected > 0
    assert stats.chisquare(observed[kept], expected[kept]).pvalue > 0.01


def test_a_test_of_frequencies_finds_the_assistants_own_distribution():
    """With a tenth of the draws of the test above."""
    model, params, assistant = pair()
    sampling, prompt = SamplingParams(), np.array([1, 2, 3])
    own, other = (
        exact(*each, prompt, 1, sampling)
        for each in ((model, params), (assistant.model, assistant.params))
    )
    assert stats.chisquare(600 * other, 600 * own).pvalue < 1e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"model.position_embedding": "alibi", "model.scan": True, "model.num_layers": 2},
        pytest.param({"model.position_embedding": "learned"}, marks=pytest.mark.slow),
        {"attention.mechanism": "forgetting", "attention.weighting": "log_length"},
        pytest.param({"attention.mechanism": "stick_breaking"}, marks=pytest.mark.slow),
        pytest.param({"attention.mechanism": "cosformer"}, marks=pytest.mark.slow),
    ],
)
def test_greedy_tokens_are_those_without_an_assistant_for_prompts_of_different_lengths(settings):
    model, params, assistant = pair(64, 3, **settings)
    prompts = [np.random.default_rng(1).integers(0, 64, length) for length in (3, 9, 4)]
    options = {"max_new_tokens": 12}
    _, tokens = decoded(
        model, params, prompts, assistant, sampling=SamplingParams(temperature=0.0), **options
    )
    plain = np.stack(list(generate(model, params, prompts, temperature=0.0, **options)), axis=1)
    np.testing.assert_array_equal(tokens, plain)


def test_an_assistant_equal_to_the_model_has_every_token_accepted():
    model, params = model_and_params(64, **SMALL)
    prompts = [np.array([1, 2, 3]), np.array([7])]
    for sampling in (SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(0.9, 9)):
        assistant = Assistant(model, params, 3)
        found, tokens = decoded(
            model, params, prompts, assistant, max_new_tokens=13, sampling=sampling
        )
        assert tokens.shape == (2, 13)
        assert found.accepted == 3 * found.rounds
        assert str(found) == "3.00 of 3 drafted tokens accepted"


@pytest.mark.slow
def test_a_text_does_not_depend_on_the_prompts_beside_it():
    model, params, assistant = pair(64, 3)
    prompts = [np.random.default_rng(2).integers(0, 64, length) for length in (2, 8, 5)]
    _, together = decoded(model, params, prompts, assistant, max_new_tokens=9, seed=3)
    for prompt, row in zip(prompts, together, strict=True):
        _, alone = decoded(model, params, [prompt], assistant, max_new_tokens=9, seed=3)
        np.testing.assert_array_equal(alone[0], row)


@pytest.mark.slow
def test_an_encoder_decoder_is_assisted_by_a_smaller_one():
    settings = {"model.architecture": "encoder_decoder", "model.position_embedding": "rotary"}
    model, params = model_and_params(64, **SMALL, **settings)
    other, others = model_and_params(64, **SMALL, **settings, **{"model.num_heads": 2})
    rng = np.random.default_rng(2)
    sources = [rng.integers(0, 64, length) for length in (3, 9)]
    given = {"sources": sources, "max_new_tokens": 7}
    prompts, greedy = [np.array([1])] * 2, SamplingParams(temperature=0.0)
    assistant = Assistant(other, others, 2)
    _, tokens = decoded(model, params, prompts, assistant, sampling=greedy, **given)
    plain = np.stack(list(generate(model, params, prompts, temperature=0.0, **given)), axis=1)
    np.testing.assert_array_equal(tokens, plain)


def test_a_prefix_language_model_is_assisted_by_a_causal_one():
    model, params, assistant = pair(64, 2)
    prompts = [np.random.default_rng(3).integers(0, 64, length) for length in (4, 7)]
    given = {"prefix": True, "max_new_tokens": 6}
    greedy = SamplingParams(temperature=0.0)
    _, tokens = decoded(model, params, prompts, assistant, sampling=greedy, **given)
    plain = np.stack(list(generate(model, params, prompts, temperature=0.0, **given)), axis=1)
    np.testing.assert_array_equal(tokens, plain)


def test_one_token_needs_no_draft():
    model, params, assistant = pair()
    found, tokens = decoded(model, params, [np.array([1])], assistant, max_new_tokens=1)
    assert tokens.shape == (1, 1)
    assert str(found) == "no tokens drafted"


def chosen(p, q, tokens, seed=0):
    keys = jax.random.split(jax.random.key(seed), (2, len(p)))
    with np.errstate(divide="ignore"):
        arrays = (jnp.log(jnp.asarray(x, jnp.float32)) for x in (p, q))
        return tuple(int(x) for x in choose(*arrays, jnp.asarray(tokens), *keys))


def test_what_the_model_never_draws_is_not_accepted_and_what_it_prefers_always_is():
    p = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    for seed in range(20):
        assert chosen(p, [[1.0, 0.0, 0.0]] * 2, [0, 0], seed) == (0, 1)
        assert chosen(p, [[0.0, 0.5, 0.5]] * 2, [1, 2], seed) == (2, 0)
        assert chosen(p, [[0.0, 0.5, 0.5]] * 2, [1, 1], seed) == (1, 2)


def test_an_assistant_of_nan_is_ignored_and_a_model_of_nan_is_told():
    nan, one = float("nan"), [[0.0, 1.0, 0.0]]
    assert chosen(one * 3, [[nan] * 3] * 2, [0, 0]) == (0, 1)
    assert chosen([[nan] * 3] * 3, one * 2, [1, 1]) == (0, -1)
    assert chosen([*one, [nan] * 3, *one], one * 2, [1, 1]) == (1, -1)
    model, params, assistant = pair()
    broken = jax.tree.map(lambda p: p * nan, params)
    with pytest.raises(UserError, match="probabilities are NaN"):
        decoded(model, broken, [np.array([1])], assistant, max_new_tokens=4)


def test_an_assistant_that_cannot_help_is_one_line():
    model, params, assistant = pair()
    with pytest.raises(UserError, match=r"vocabulary of 5 tokens and the model one of 7"):
        decoded(*model_and_params(7, **SMALL), [np.array([1])], assistant, max_new_tokens=2)
    other = model_and_params(5, **SMALL, **{"model.max_seq_len": 8})
    with pytest.raises(UserError, match=r"need 10 positions, but the assistant has 8"):
        decoded(model, params, [np.array([1])], Assistant(*other, 2), max_new_tokens=9)
    encoder = model_and_params(5, **SMALL, **{"model.architecture": "encoder"})
    with pytest.raises(UserError, match="architecture decoder, and the assistant of encoder"):
        decoded(model, params, [np.array([1])], Assistant(*encoder, 2), max_new_tokens=2)


def test_an_assistant_of_another_tokenizer_or_mesh_is_one_line():
    def run(devices=1, **tokenizer):
        own = types.SimpleNamespace(
            **{"name": "bytes", "hash": "a", "vocab_size": 256, **tokenizer}
        )
        own.encode_batch = ByteTokenizer().encode_batch
        mesh = types.SimpleNamespace(devices=np.zeros(devices))
        config = types.SimpleNamespace(
            objective="causal", model=types.SimpleNamespace(architecture="decoder")
        )
        own.end, program = 255, types.SimpleNamespace(mesh=mesh, model=None)
        return types.SimpleNamespace(
            tokenizer=own, program=program, config=config, opens=(), params={}
        )

    request = Request(["a"], 4, [], SamplingParams(), 0, 1, 0.0)
    with pytest.raises(
        UserError, match=r"assistant's tokenizer \(bpe\) is not the model's \(bytes"
    ):
        generate_texts(run(), request, run(name="bpe", hash="b"))
    with pytest.raises(UserError, match="split over 2 devices and the assistant over 1"):
        generate_texts(run(devices=2), request, run())


@pytest.mark.parametrize(
    ("given", "beams", "refusal"),
    [
        (["num_assistant_tokens"], 1, "--num_assistant_tokens needs --assistant_model"),
        (["assistant_model"], 2, "--num_beams=2 does not sample; leave out --assistant_model"),
        (["max_new_tokens", "top_p"], 3, "--num_beams=3 does not sample; leave out --top_p"),
    ],
)
def test_options_that_exclude_each_other_are_one_line(given, beams, refusal):
    with pytest.raises(UserError, match=refusal):
        Request(["a"], 4, [], SamplingParams(), 0, beams, 0.0, given=given)
