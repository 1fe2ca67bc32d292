"""A text alone, in float32, is the oracle: beside padding, packed among other documents and decoded
with a cache, each mechanism gives the same, with learned prompts and prefixes too.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.attention import ATTENTIONS, Mask, Mechanism, attend
from lm.attention.positions import AlibiBias, RelativeBias, alibi_slopes
from lm.config import override
from lm.errors import UserError
from lm.generation.decode import next_token_log_probs
from lm.generation.prefill import forward
from lm.generation.prompts import pad_prompts
from lm.model.config import ARCHITECTURES, POSITIONS
from lm.model.transformer import Batch
from lm.training.prepare import prepare_corpus
from lm.training.validate import check
from lm.training.validate_options import check_packed
from tests.small_models import init, model_of

V = 11
METHODS = ("full", "prompt", "prefix")
TEXT, SOURCE = 6, 4  # lengths


def allowed(side, name, positions, method):
    """Whether a config may ask for it. Of an encoder-decoder, it is the mechanism of the attention
    to the memory, whose scores positions do not shape.
    """
    mechanism = ATTENTIONS[name]
    if side == "encoder_decoder":
        alone = mechanism.causal_only or mechanism.self_only
        return not alone and positions in ("learned", "relative")
    if (
        positions in Mechanism.position_embeddings
        and positions not in mechanism.position_embeddings
    ):
        return False
    if side == "encoder" and mechanism.causal_only:
        return False
    alone = mechanism.owns_weights or mechanism.causal_only or mechanism.self_only
    return method != "prefix" or not alone


# Each mechanism, kind of position and method with the others that could move what it counts.
QUICK = [
    ("decoder", "scores", "alibi", "prompt"),
    ("decoder", "scores", "relative", "prefix"),
    ("decoder", "forgetting", "none", "prompt"),
    ("decoder", "cosformer", "none", "prompt"),
    ("decoder", "stick_breaking", "rotary", "prompt"),
    ("encoder", "scores", "relative", "prefix"),
    ("encoder_decoder", "cosformer", "learned", "full"),
    ("encoder_decoder", "linear", "relative", "prompt"),
]
CASES = [
    pytest.param(case, id="-".join(case), marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(ARCHITECTURES, ATTENTIONS, POSITIONS, METHODS)
    if allowed(*case)
]


def words(length, seed):
    return np.random.default_rng(seed).integers(1, V, length)


def row(*texts, length=None):
    """Tokens, segments and positions [1, L] of texts that follow each other, and of padding."""
    parts = [
        [text, np.full(len(text), number), np.arange(len(text))]
        for number, text in enumerate(texts, 1)
    ]
    joined = np.concatenate(parts, axis=1)
    joined = np.pad(joined, ((0, 0), (0, (length or joined.shape[1]) - joined.shape[1])))
    return jnp.asarray(joined[:, None], jnp.int32)


def log_probs(model, params, rows, memories):
    """[B, L, V] of rows [3, B, L], and in an encoder-decoder of what it reads, [3, B, S]."""
    apply = jax.jit(
        lambda *x: model.apply({"params": params}, batch_of(model, *x), method="log_probs")
    )
    return np.asarray(apply(rows, memories))


def batch_of(model, rows, memories):
    tokens, segments, positions = rows
    batch = Batch(tokens, tokens, jnp.ones_like(tokens), segments, positions)
    if model.config.encoder is None:
        return batch
    names = ("encoder_inputs", "encoder_segments", "encoder_positions")
    return batch.replace(**dict(zip(names, memories, strict=True)))


@functools.cache
def alone(side, name, positions, method):
    """A model, its parameters, and the oracle: log-probabilities [L, V] of a text alone."""
    group = "cross_attention" if side == "encoder_decoder" else "attention"
    settings = {
        "model.architecture": side,
        "model.position_embedding": positions,
        "model.num_layers": 1,
        "model.relative_num_buckets": 8,
        "model.relative_max_distance": 12,
        f"{group}.mechanism": name,
        "finetuning.method": method,
    }
    if method != "full":
        settings["finetuning.num_virtual_tokens"] = 3
    model = model_of(V, **settings)
    arrays = row(words(TEXT, 0)), row(words(SOURCE, 1))
    params = init(model, batch_of(model, *arrays))
    return model, params, log_probs(model, params, *arrays)[0]


@pytest.mark.parametrize("case", CASES)
def test_a_text_beside_padding_or_packed_behind_another_is_the_text_alone(case):
    side, *_, method = case
    model, params, expected = alone(*case)
    text, source = words(TEXT, 0), words(SOURCE, 1)
    # A prompt that reads the text would have to be one for each document: that is refused.
    others = () if method == "prompt" and side != "decoder" else (words(9, 2),)
    rows = row(text, length=17), row(*others, text, length=17)
    memories = row(source, length=12), row(*(words(7, 3) for _ in others), source, length=12)
    found = log_probs(model, params, *(jnp.concatenate(x, axis=1) for x in (rows, memories)))
    np.testing.assert_allclose(found[0, :TEXT], expected, atol=2e-5)
    start = 9 * len(others)
    np.testing.assert_allclose(found[1, start : start + TEXT], expected, atol=2e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0][0] != "encoder"])
def test_a_text_decoded_beside_a_longer_one_is_the_text_alone(case):
    model, params, expected = alone(*case)
    text, begun, longer = words(TEXT, 0), 2, words(7, 2)
    sources = None
    if model.config.encoder is not None:
        sources = [words(SOURCE, 1), words(6, 3)]
    prompts = pad_prompts(model, [text[:begun], longer], sources, TEXT - begun, TEXT - begun, False)

    @jax.jit
    def step(cache, inputs, offset):
        hidden, cache = forward(model, params, cache, prompts, inputs, offset)
        return next_token_log_probs(model, params, hidden[:, -1])[0], cache

    following, cache = step(None, prompts.inputs, 0)
    found = [following]
    for offset, word in enumerate(text[begun:], len(longer)):
        following, cache = step(cache, jnp.full((2, 1), word), offset)
        found.append(following)
    np.testing.assert_allclose(np.stack(found), expected[begun - 1 :], atol=2e-5)


TABLE = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)


@pytest.mark.parametrize(
    "bias", [AlibiBias(alibi_slopes(2)), RelativeBias(jnp.asarray(TABLE), 12, False)]
)
def test_blocks_of_queries_count_distances_by_positions_as_all_at_once(bias):
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(3, n, 2, 4)), jnp.float32) for n in (5, 7, 7))
    positions, key_positions = (jnp.asarray(rng.integers(0, 20, (3, n))) for n in (5, 7))
    mask = Mask(positions=positions, key_positions=key_positions)

    def contexts(mask, query_chunk_size):
        return attend(
            query, key, value, mask=mask, position_bias=bias, query_chunk_size=query_chunk_size
        )

    plain = contexts(mask, 0)
    np.testing.assert_allclose(contexts(mask, 2), plain, atol=1e-6)
    later = Mask(positions=positions + 3, key_positions=key_positions + 3)
    np.testing.assert_allclose(contexts(later, 0), plain, atol=1e-6)
    assert np.abs(contexts(Mask(), 0) - plain).max() > 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "masked", "model.architecture": "encoder"},
        {"objective": "seq2seq", "model.architecture": "encoder_decoder"},
        {"objective": "prefix"},
    ],
)
def test_packed_texts_share_no_prompt_that_reads_them(settings):
    config = override(default.get_config(), {**settings, "finetuning.method": "prompt+lora"})
    with pytest.raises(UserError, match="use prefix or lora, or a task"):
        prepare_corpus(config)
    check_packed(override(config, {"finetuning.method": "prefix+lora"}))


@pytest.mark.parametrize(
    "name", [name for name in ATTENTIONS if not allowed("decoder", name, "none", "prefix")]
)
def test_what_stands_in_for_a_refused_prefix_is_possible(name):
    settings = {"attention.mechanism": name, "init_from": "runs/base"}
    config = override(default.get_config(), {**settings, "finetuning.method": "prefix"})
    with pytest.raises(UserError, match="use prompt or lora, or mechanism scores"):
        check(config)
    for remedy in (
        {"finetuning.method": "prompt"},
        {"finetuning.method": "lora"},
        {"attention.mechanism": "scores"},
    ):
        check(override(config, remedy))
