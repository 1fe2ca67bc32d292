"""Slots that begin and end at different times draw what generate draws for each text alone."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.attention import ATTENTIONS
from lm.config import override
from lm.devices import sharding
from lm.evaluation.attention_weights import attention_weights
from lm.generation import SamplingParams, generate, prompt_batch, sample
from lm.generation.sample import request_bytes
from lm.output import OUTPUTS
from lm.serving.buckets import buckets
from lm.serving.slot_sampling import as_arrays, sample_slots
from lm.serving.slots import Slots
from lm.serving.weights import fixed_weights
from lm.softmax import WEIGHTINGS
from lm.training.build_model import build_model

V, LENGTH, NEW = 64, 40, 8
SAMPLINGS = (SamplingParams(0.0), SamplingParams(1.0), SamplingParams(0.7, 5, 0.9, 0.05))
SMALL = {"model.num_layers": 1, "model.d_model": 16, "model.num_heads": 4}
SMALL |= {"model.max_seq_len": LENGTH}


class Program:
    """The part of a program that slots need."""

    def __init__(self, model):
        self.model, self.mesh = model, sharding.make_mesh(data=1)


def model_and_params(**settings):
    config = override(default.get_config(), SMALL | settings)
    model = build_model(config, V)
    batch = prompt_batch(jnp.zeros((1, 4), int), jnp.arange(4)[None])
    if model.config.encoder is not None:
        memory = {"encoder_inputs": batch.inputs, "encoder_segments": batch.segments}
        batch = batch.replace(**memory, encoder_positions=batch.positions)
    init = jax.jit(lambda key: model.init(key, batch, False, method="loss")["params"])
    return config, model, jax.tree.map(lambda p: p * 5, init(jax.random.key(0)))


def assert_as_generated(**settings):
    """Three texts of different lengths and sampling enter one after the other."""
    config, model, params = model_and_params(**settings)
    rng, prefix = np.random.default_rng(1), config.objective == "prefix"
    prompts = [rng.integers(0, V, length) for length in (3, 20, 9)]
    sources = [None] * 3
    if model.config.encoder is not None:
        sources, prompts = prompts, [np.array([0])] * 3
    slots, weights = Slots(Program(model), 3, LENGTH, prefix), fixed_weights(params)
    slots.reset(weights, as_arrays(SAMPLINGS[0]))
    drawn = [[], [], []]
    for slot, (prompt, source) in enumerate(zip(prompts, sources, strict=True)):
        arrays = [prompt] if source is None else [prompt, source]
        seed = 7, zlib.crc32(request_bytes(arrays)), 0
        options = as_arrays(SAMPLINGS[slot])
        first = slots.admit(weights, slot, prompt, seed, options, 0, source)
        drawn[slot].append(int(first.token[0]))
        for _ in range(NEW - 1 if slot == 2 else 1):
            tokens = np.asarray(slots.decode(weights, range(slot + 1)).token)
            for other in range(slot + 1):
                drawn[other].append(int(tokens[other]))
    for slot, (prompt, source) in enumerate(zip(prompts, sources, strict=True)):
        options = {"seed": 7, "prefix": prefix, **vars(SAMPLINGS[slot])}
        options["sources"] = None if source is None else [source]
        steps = generate(model, params, [prompt], max_new_tokens=NEW, **options)
        assert drawn[slot][:NEW] == [int(step[0]) for step in steps], slot


MODELS = {
    "learned positions": {"model.position_embedding": "learned"},
    "alibi": {"model.position_embedding": "alibi"},
    "relative": {"model.position_embedding": "relative"},
    "scanned layers": {"model.scan": True, "model.num_layers": 2},
    "grouped keys in bfloat16": {"model.num_kv_heads": 2, "model.dtype": "bfloat16"},
    "a prefix language model": {"objective": "prefix"},
    "an encoder-decoder": {"model.architecture": "encoder_decoder"},
}
ADDED = {"model.max_seq_len": LENGTH + 4, "data.seq_len": 20}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_draws_in_slots_what_it_draws_alone(name):
    assert_as_generated(**MODELS[name])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "ia3", "adapter", "prompt", "prefix"])
def test_every_adapter_draws_in_slots_what_it_draws_alone(method):
    virtual = {"finetuning.num_virtual_tokens": 4} if method in ("prompt", "prefix") else {}
    assert_as_generated(**ADDED, **virtual, **{"finetuning.method": method})


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_draws_in_slots_what_it_draws_alone(weighting):
    assert_as_generated(**{"attention.weighting": weighting})


def mechanism_settings(mechanism):
    rotary = "rotary" in ATTENTIONS[mechanism].position_embeddings
    positions = "rotary" if rotary else "none"
    return {"attention.mechanism": mechanism, "model.position_embedding": positions}


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ATTENTIONS)
def test_every_mechanism_draws_in_slots_what_it_draws_alone(mechanism):
    assert_as_generated(**mechanism_settings(mechanism))


@pytest.mark.slow
@pytest.mark.parametrize("head", [name for name in OUTPUTS if not OUTPUTS[name].sequence_level])
def test_every_head_draws_in_slots_what_it_draws_alone(head):
    assert_as_generated(**{"output.head": head})


@pytest.mark.slow
def test_nothing_is_compiled_after_the_start():
    _, model, params = model_and_params()
    slots, weights = Slots(Program(model), 2, LENGTH), fixed_weights(params)
    for _ in slots.compile(weights, as_arrays(SAMPLINGS[1])):
        pass
    assert slots.compiled == 2 * len(buckets(LENGTH))
    for length in range(1, LENGTH):
        prompt, options = np.zeros(length, int), as_arrays(SAMPLINGS[length % 3])
        slots.admit(weights, length % 2, prompt, (length, 0, 0), options, 0)
        slots.decode(weights, [length % 2])
    assert slots.compiled == 2 * len(buckets(LENGTH))


def test_a_step_copies_no_more_of_the_cache_than_a_layer():
    settings = {"model.scan": True, "model.num_layers": 8, "model.max_seq_len": 512}
    _, model, params = model_and_params(**settings)
    slots, weights = Slots(Program(model), 4, 512), fixed_weights(params)
    slots.reset(weights, as_arrays(SAMPLINGS[0]))
    compiled = slots._decode.lower(512, weights, slots.state).compile()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(slots.state.cache))
    assert compiled.memory_analysis().temp_size_in_bytes < cache / 2


def test_texts_are_padded_to_few_lengths():
    assert buckets(100) == [16, 32, 64, 100]
    assert buckets(64) == [16, 32, 64]
    assert buckets(5) == [5]


def test_each_slot_samples_by_its_own_options():
    options = [*SAMPLINGS, SamplingParams(1.0, 3), SamplingParams(2.0, V, 0.5)]
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (len(options), V)) * 2)
    stacked = jax.tree.map(lambda *each: np.stack(each), *map(as_arrays, options))
    keys = jax.random.split(jax.random.key(1), (8, len(options)))
    together = jax.jit(jax.vmap(functools.partial(sample_slots, log_probs), (0, None)))
    drawn = np.asarray(together(keys, stacked))
    for number, each in enumerate(options):
        one = jax.jit(jax.vmap(functools.partial(sample, log_probs[number], **vars(each))))
        np.testing.assert_array_equal(drawn[:, number], one(keys[:, number]))
    broken = jnp.full((8, len(options), V), jnp.nan)
    assert (jax.vmap(sample_slots, (0, 0, None))(broken, keys, stacked) == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ATTENTIONS)
def test_weights_of_every_mechanism_see_no_later_key_and_sum_to_what_it_says(mechanism):
    for scan in (False, True):
        settings = mechanism_settings(mechanism) | {"model.scan": scan, "model.num_layers": 2}
        _, model, params = model_and_params(**settings)
        tokens = jnp.arange(6)[None]
        found = attention_weights(model, params, prompt_batch(tokens, tokens))
        assert len(found) == (2 if mechanism == "differential" else 1)
        for weights in found.values():
            assert weights.shape == (2, 1, 4, 6, 6)
            assert not np.triu(weights, 1).any()
            if mechanism not in ("stick_breaking", "talking_heads", "cosformer"):
                np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
