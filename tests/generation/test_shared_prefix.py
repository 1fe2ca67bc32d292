"""What several prompts begin with is read once, and changes nothing."""

import functools

import jax
import numpy as np
import pytest

from configs import default
from lm.config import override
from lm.generation import beam_search, generate
from lm.generation.assisted import Assistant, AssistedDecoding
from lm.generation.decode import next_token_log_probs
from lm.generation.prefill import forward, read_prompts, shared_length
from lm.generation.prompts import pad_prompts, prompt_batch
from lm.generation.sample import SamplingParams
from lm.training.build_model import build_model

V, MAX = 64, 96


@functools.cache
def model_and_params(**settings):
    config = override(
        default.get_config(),
        {
            "model.num_layers": 2,
            "model.d_model": 16,
            "model.num_heads": 4,
            "model.max_seq_len": MAX,
            "data.seq_len": 64,
        }
        | settings,
    )
    model = build_model(config, V)
    batch = prompt_batch(np.zeros((1, 4), int), np.arange(4)[None])
    init = jax.jit(lambda key: model.init(key, batch, False, method="loss")["params"])
    return model, jax.tree.map(lambda p: p * 5, init(jax.random.key(0)))


def prompts_after(shared, *lengths):
    """Prompts of `shared` tokens alike, and of different ones behind."""
    draw = np.random.default_rng(0)
    start = draw.integers(0, V, shared)
    rests = [
        np.append(number, draw.integers(0, V, length - 1)) for number, length in enumerate(lengths)
    ]
    return [np.concatenate([start, rest]).astype(np.int32) for rest in rests]


SLOW = [
    {"attention.mechanism": "stick_breaking"},
    {"attention.mechanism": "differential"},
    {"attention.mechanism": "favor", "model.scan": True},
    {"attention.weighting": "sparsemax", "model.position_embedding": "relative"},
    {"model.position_embedding": "learned"},
    {"finetuning.method": "prefix", "finetuning.num_virtual_tokens": 3},
]


@pytest.mark.parametrize(
    "settings",
    [
        {"model.position_embedding": "alibi", "model.scan": True},
        {"attention.mechanism": "forgetting", "attention.weighting": "log_length"},
        {
            "finetuning.method": "prompt",
            "finetuning.num_virtual_tokens": 3,
            "attention.mechanism": "cosformer",
        },
        *(pytest.param(settings, marks=pytest.mark.slow) for settings in SLOW),
    ],
    ids=lambda settings: ",".join(map(str, settings.values())),
)
def test_a_shared_beginning_that_is_copied_gives_the_hidden_states_of_reading_all(settings):
    model, params = model_and_params(**settings)
    prompts = pad_prompts(model, prompts_after(40, 3, 20, 1), None, 4, 4, False)

    @functools.partial(jax.jit, static_argnums=2)
    def read(params, prompts, shared):
        hidden, cache = read_prompts(model, params, prompts, shared)
        # The cache goes on as it would have.
        place = prompts.inputs.shape[1]
        later, _ = forward(model, params, cache, prompts, prompts.inputs[:, -1:], place)
        return [next_token_log_probs(model, params, x) for x in (hidden, later[:, -1])]

    for found, expected in zip(read(params, prompts, 32), read(params, prompts, 0), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (prompts_after(70, 3, 5), 64),
        (prompts_after(31, 3, 5), 0),
        (prompts_after(64, 3)[:1] * 3, 64),
        (prompts_after(64, 3)[:1], 0),
        ([np.arange(32)] * 2, 0),
        ([np.arange(33), np.arange(90)], 32),
    ],
)
def test_whole_steps_of_the_common_tokens_are_shared_and_no_whole_prompt(prompts, expected):
    assert shared_length(prompts) == expected


@pytest.mark.slow
def test_greedy_tokens_beams_and_drafts_are_those_of_each_prompt_alone():
    model, params = model_and_params()
    prompts = prompts_after(40, 3, 20)
    given = {"max_new_tokens": 5}
    together = np.stack(list(generate(model, params, prompts, temperature=0.0, **given)), 1)
    options = {"num_beams": 1, "eos_token_id": V - 1}
    beams = beam_search(model, params, prompts, **given, **options).tokens[:, 0]
    assisted = AssistedDecoding(
        model,
        params,
        prompts,
        assistant=Assistant(model, params, 2),
        sampling=SamplingParams(temperature=0.0),
        **given,
    )
    drafted = np.stack(list(assisted), 1)
    for row, prompt in enumerate(prompts):
        alone = np.stack(list(generate(model, params, [prompt], temperature=0.0, **given)), 1)[0]
        assert V - 1 not in alone
        for found in (together, beams, drafted):
            np.testing.assert_array_equal(found[row], alone)
