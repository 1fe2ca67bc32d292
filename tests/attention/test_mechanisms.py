"""Every mechanism of `ATTENTIONS` keeps the laws of attention, in the model and alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.attention import ATTENTIONS, Mask
from lm.config import override
from lm.data.objectives import causal
from lm.devices import sharding
from lm.errors import UserError
from lm.generation import generate, prompt_batch
from lm.model.resolve import model_config
from lm.training.build_model import build_model
from lm.training.program import build_program
from lm.training.validate import check
from tests.attention_inputs import CAUSAL, EITHER, PLAIN_CORE, SEGMENTS, B, L, apply, tensors

# One of each kind of score, and of what else than keys and values a cache may hold.
DECODED = {"scores", "differential", "forgetting", "stick_breaking", "linear"}
EVERY = pytest.mark.parametrize("name", ATTENTIONS)


@pytest.mark.parametrize(
    ("name", "jit"),
    [
        *((name, True) for name in ATTENTIONS),
        pytest.param("forgetting", False, marks=pytest.mark.slow),
    ],
)
def test_later_positions_and_other_documents_get_exactly_zero_gradient(name, jit):
    arrays = tensors()
    mask = Mask(causal=True, segments=jnp.asarray(SEGMENTS))

    def outputs(arrays):
        return jnp.sum(jnp.sin(apply(name, arrays, mask)[0, 7]))

    gradient = jax.jit(jax.grad(outputs)) if jit else jax.grad(outputs)
    for g in map(np.asarray, gradient(arrays)):
        assert (g[0, 8:] == 0).all() and (g[0, :5] == 0).all() and (g[1] == 0).all()
    key, value = gradient(arrays)[1:3]
    earlier = slice(5, 7) if name == "stick_breaking" else slice(5, 8)
    assert (value[0, earlier] != 0).any((-2, -1)).all()
    assert (key[0, earlier] != 0).any()


@pytest.mark.slow
@EVERY
def test_what_stands_in_later_positions_and_other_documents_changes_not_one_bit(name):
    arrays, others = tensors(), tensors(seed=1)
    mask = Mask(causal=True, segments=jnp.asarray(SEGMENTS))
    mine = np.zeros((B, L), bool)
    mine[0, 5:8] = True
    mixed = [
        jnp.where(mine[..., *(None,) * (a.ndim - 2)], a, 30 * b)
        for a, b in zip(arrays, others, strict=True)
    ]
    np.testing.assert_array_equal(
        apply(name, mixed, mask)[0, 5:8], apply(name, arrays, mask)[0, 5:8]
    )


@EVERY
@pytest.mark.parametrize("query_chunk_size", [0, 5])
def test_padded_keys_are_not_felt(name, query_chunk_size):
    arrays, others = tensors(), tensors(seed=1)
    padding = np.ones((B, L), bool)
    padding[:, 9:] = False
    mask = Mask(causal=name in CAUSAL, padding=jnp.asarray(padding))
    mixed = [
        jnp.where(padding[..., None, None], a, b)
        for a, b in zip(arrays[:3], others[:3], strict=True)
    ]
    mixed.append(jnp.where(padding[..., None], arrays[3], others[3]))
    expected = apply(name, arrays, mask, query_chunk_size=query_chunk_size)[:, :9]
    np.testing.assert_array_equal(
        apply(name, mixed, mask, query_chunk_size=query_chunk_size)[:, :9], expected
    )
    short = [x[:, :9] for x in arrays]
    alone = apply(name, short, Mask(causal=name in CAUSAL), query_chunk_size=query_chunk_size)
    np.testing.assert_allclose(expected, alone, atol=2e-6)


@EVERY
def test_grouped_queries_are_repeated_keys(name):
    query, key, value, inputs = tensors(groups=2)
    repeated = [query, jnp.repeat(key, 2, axis=2), jnp.repeat(value, 2, axis=2), inputs]
    mask = Mask(causal=True, segments=jnp.asarray(SEGMENTS))
    grouped = apply(name, [query, key, value, inputs], mask)
    np.testing.assert_allclose(grouped, apply(name, repeated, mask), atol=2e-6)


@EVERY
@pytest.mark.parametrize("query_chunk_size", [0, 5])
def test_rows_that_see_nothing_are_zeros_with_zero_gradient(name, query_chunk_size):
    arrays = tensors()
    padding = np.ones((B, L), bool)
    padding[0, :4] = False
    padding[1] = False
    mask = Mask(causal=True, padding=jnp.asarray(padding))

    def outputs(arrays):
        context = apply(name, arrays, mask, query_chunk_size=query_chunk_size)
        return jnp.sum(jnp.sin(context[0, :4])) + jnp.sum(jnp.sin(context[1])), context

    gradient, context = jax.grad(outputs, has_aux=True)(arrays)
    assert (np.asarray(context)[0, :4] == 0).all() and (np.asarray(context)[1] == 0).all()
    assert np.isfinite(context).all()
    for g in gradient:
        assert (np.asarray(g) == 0).all()


@EVERY
def test_bfloat16_is_computed_in_float32_inside(name):
    arrays = tensors(length=40)
    rounded = [x.astype(jnp.bfloat16) for x in arrays]
    mask = Mask(causal=True)
    context = apply(name, rounded, mask)
    assert context.dtype == jnp.bfloat16
    exact = apply(name, [x.astype(jnp.float32) for x in rounded], mask)
    error = np.abs(np.asarray(context, np.float32) - exact).max() / np.abs(exact).max()
    # A few roundings of weights, values and results, each 2^-9.
    assert error < 2**-6


@EVERY
def test_blocks_of_queries_agree_with_all_at_once_forward_and_backward(name):
    arrays = tensors()
    mask = Mask(causal=True, segments=jnp.asarray(SEGMENTS))

    def total(arrays, query_chunk_size):
        context = apply(name, arrays, mask, query_chunk_size=query_chunk_size)
        return jnp.sum(jnp.sin(context)), context

    both = jax.value_and_grad(total, has_aux=True)
    (_, expected), at_once = both(arrays, 0)
    (_, actual), gradient = both(arrays, 5)
    np.testing.assert_allclose(actual, expected, atol=3e-6)
    for a, b in zip(gradient, at_once, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# Through the model.


def model_and_params(name, **settings):
    config = override(
        default.get_config(),
        {
            "attention.mechanism": name,
            "model.num_layers": 1,
            "model.d_model": 32,
            "model.num_heads": 4,
            "model.num_kv_heads": 2,
            "model.max_seq_len": 40,
            "model.init_std": 0.1,
            "data.seq_len": 32,
        }
        | settings,
    )
    model = build_model(config, 256)
    batch = causal({"tokens": jnp.zeros((1, 5), jnp.int32), "segments": jnp.ones((1, 4), int)})
    if config.model.architecture == "encoder_decoder":
        batch = batch.replace(
            encoder_inputs=batch.inputs,
            encoder_segments=batch.segments,
            encoder_positions=batch.positions,
        )
    rngs = {"params": jax.random.key(0), "softmax": jax.random.key(1)}
    init = jax.jit(lambda: model.init(rngs, batch, False, method="loss")["params"])
    return model, init()


@pytest.mark.parametrize(
    ("name", "scan"),
    [
        *((n, False) for n in ATTENTIONS if n in DECODED),
        *(pytest.param(n, False, marks=pytest.mark.slow) for n in ATTENTIONS if n not in DECODED),
        pytest.param("forgetting", True, marks=pytest.mark.slow),
    ],
)
def test_cached_decoding_gives_the_log_probabilities_of_the_whole(name, scan):
    rotary = "rotary" if "rotary" in ATTENTIONS[name].position_embeddings else "learned"
    model, params = model_and_params(
        name, **{"model.scan": scan, "model.position_embedding": rotary}
    )
    ids = np.random.default_rng(0).integers(0, 256, 12)

    def log_probs(variables, ids, place=0, **decoding):
        batch = prompt_batch(ids[None], place + jnp.arange(len(ids))[None])
        return model.apply(variables, batch, method="log_probs", **decoding)

    @jax.jit
    def decode(variables, ids, place):
        decoding = {"offset": place, "cache_length": 14, "mutable": ["cache"]}
        return log_probs(variables, ids, place, **decoding)

    whole = jax.jit(log_probs)({"params": params}, jnp.asarray(ids))[0]
    cache = {}
    for start in (0, 6, 9):
        end = 6 if start == 0 else start + 3
        variables = {"params": params, **cache}
        step, cache = decode(variables, jnp.asarray(ids[start:end]), jnp.asarray(start))
        np.testing.assert_allclose(step[0], whole[start:end], atol=1e-5)


@pytest.mark.parametrize("name", ["forgetting"])
def test_prompts_of_different_lengths_continue_as_each_would_alone(name):
    model, params = model_and_params(name)
    log_probs = jax.jit(lambda params, x: model.apply({"params": params}, x, method="log_probs"))
    prompts = [np.arange(3), np.arange(50, 59)]
    together = np.stack(
        list(generate(model, params, prompts, max_new_tokens=3, temperature=0.0)), axis=1
    )
    for prompt, continuation in zip(prompts, together, strict=True):
        ids = np.concatenate([prompt, continuation])
        batch = prompt_batch(jnp.asarray(ids)[None], jnp.arange(len(ids))[None])
        whole = log_probs(params, batch)[0]
        for place, token in enumerate(continuation, start=len(prompt) - 1):
            assert whole[place, token] >= whole[place].max() - 1e-5


@pytest.mark.parametrize("name", EITHER)
@pytest.mark.parametrize(
    "architecture", ["encoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)]
)
def test_encoders_and_memories_are_seen_whole_and_by_their_own_document_only(name, architecture):
    model, params = model_and_params(name, **{"model.architecture": architecture})
    tokens = np.random.default_rng(0).integers(0, 256, (2, L + 1)).astype(np.int32)
    batch = causal({"tokens": jnp.asarray(tokens), "segments": jnp.asarray(SEGMENTS)})
    if architecture == "encoder":
        changed = batch.replace(inputs=batch.inputs.at[0, 6].add(1) % 256)
    else:
        batch = batch.replace(
            encoder_inputs=batch.inputs[:, ::-1],
            encoder_segments=batch.segments,
            encoder_positions=batch.positions,
        )
        changed = batch.replace(encoder_inputs=batch.encoder_inputs.at[0, 6].add(1) % 256)
    run = jax.jit(model.apply)
    before, after = (run({"params": params}, x) for x in (batch, changed))
    np.testing.assert_array_equal((before != after).any(-1)[0], SEGMENTS[0] == 2)
    assert not (before != after)[1].any()


@pytest.mark.slow
@EVERY
def test_a_few_steps_lower_the_loss(name, small_config):
    config = override(small_config, {"attention.mechanism": name, "model.num_layers": 1})
    check(config)
    program = build_program(config, 256)
    tokens = np.frombuffer(b"the cat sat on the mat. " * 11, np.uint8)[: 8 * 33].reshape(8, 33)
    rows = {"tokens": tokens.astype(np.int32), "segments": np.ones((8, 32), np.int32)}
    rows = sharding.global_batch(program.mesh, rows)
    state, losses = program.init_state(jax.random.key(0)), []
    for _ in range(12):
        state, metrics = program.train_step(state, rows, jax.random.key(1))
        losses.append(float(metrics["train/loss"]))
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_mechanisms_refuse_to_see_later_keys(name):
    with pytest.raises(ValueError, match="causal attention only"):
        apply(name, tensors(), Mask())


@pytest.mark.parametrize("name", PLAIN_CORE)
@pytest.mark.parametrize("weighting", ["sink", "entmax15", "sigmoid"])
def test_mechanisms_with_scores_take_any_weighting(name, weighting):
    arrays, mask = tensors(), Mask(causal=True)
    context = apply(name, arrays, mask, weighting=weighting)
    assert np.isfinite(context).all() and (context != apply(name, arrays, mask)).any()


IMPOSSIBLE = [
    (
        name,
        {"model.architecture": "encoder", "objective": "masked"},
        "causal only, but config.model.architecture",
    )
    for name in CAUSAL
]
IMPOSSIBLE += [
    (name, {"attention.weighting": "sparsemax"}, f"'sparsemax' is not used by mechanism {name}")
    for name in ATTENTIONS
    if name not in PLAIN_CORE
]
IMPOSSIBLE += [
    (
        name,
        {"model.position_embedding": positions},
        f"scores that mechanism {name} does not have; use",
    )
    for name, mechanism in ATTENTIONS.items()
    for positions in ("rotary", "alibi")
    if positions not in mechanism.position_embeddings
]
IMPOSSIBLE += [
    ("gated", {"attention.gate": "heads"}, "did you mean head"),
    ("gated", {"attention.cap": 3.0}, "softmax with mechanism gated has the options: gate"),
    ("linear", {"attention.redraw": True}, "mechanism linear has the options: none"),
    ("scores", {"attention.forget_bias": 1.0}, "weighting softmax has the options: none"),
    ("cosformer", {"attention.horizon": 99}, "99 is below config.model.max_seq_len = 1024"),
    ("differential", {"model.head_dim": 7}, "head size 7 is no multiple of 2"),
    (
        "differential",
        {"model.head_dim": 6, "model.position_embedding": "rotary"},
        "with rotary positions the head size 6 is no multiple of 4",
    ),
    ("differential", {"attention.lambda_init": 1.0}, "at least 0 and below 1"),
]


@pytest.mark.parametrize(("name", "settings", "message"), IMPOSSIBLE)
def test_what_a_mechanism_cannot_do_is_refused_in_one_line(name, settings, message):
    with pytest.raises(UserError) as caught:
        check(override(default.get_config(), {"attention.mechanism": name} | settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_reach_the_mechanism_and_its_weighting():
    settings = {"attention.weighting": "softcap", "attention.cap": 3.0, "attention.gate": "head"}
    config = override(default.get_config(), {"attention.mechanism": "gated"} | settings)
    check(config)
    attention = model_config(config).stack.block.attention
    assert dict(attention.options) == {"gate": "head"}
    assert dict(attention.weighting_options) == {"cap": 3.0}
    cosformer = override(default.get_config(), {"attention.mechanism": "cosformer"})
    own = model_config(cosformer).stack.block.attention.options
    assert dict(own) == {"horizon": cosformer.model.max_seq_len}
