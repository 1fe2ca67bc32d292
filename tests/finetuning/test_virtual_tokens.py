"""Prompts are words, prefixes are what earlier words leave, and neither lets documents meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.objectives import causal
from lm.generation import generate, prompt_batch
from tests.small_models import init, model_of

V, P, L = 11, 3, 6


def plain(vocab_size=V, **settings):
    return model_of(vocab_size, **{"model.num_layers": 1, **settings})


def prompted(method, **settings):
    return plain(**{"finetuning.method": method, "finetuning.num_virtual_tokens": P, **settings})


def words(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, shape), jnp.int32)


def batch_of(tokens):
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return prompt_batch(tokens, places)


@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_a_prompt_is_words_of_its_own_before_the_text(architecture):
    settings = {"model.architecture": architecture}
    adapted, model = prompted("prompt", **settings), plain(V + P, **settings)
    tokens = words(2, L)
    params = init(adapted, batch_of(tokens))
    inputs = dict(params["inputs"])
    table = jnp.concatenate([params["embedding"], inputs.pop("prompt")["vectors"]])
    longer = jnp.concatenate([jnp.broadcast_to(V + jnp.arange(P), (2, P)), tokens], axis=1)
    expected = model.apply(
        {"params": params | {"embedding": table, "inputs": inputs}}, batch_of(longer)
    )
    hidden = adapted.apply({"params": params}, batch_of(tokens))
    np.testing.assert_allclose(hidden, expected[:, P:], atol=1e-5)


def test_a_prefix_of_what_earlier_words_leave_is_the_earlier_words():
    settings = {"model.position_embedding": "none"}
    adapted, model = prompted("prefix", **settings), plain(**settings)
    tokens = words(1, P + L)
    params = init(model, batch_of(tokens))
    expected, left = model.apply(
        {"params": params},
        batch_of(tokens),
        offset=0,
        padding=jnp.ones((1, P + L), bool),
        cache_length=P + L,
        mutable=["cache"],
    )
    with_prefix = jax.tree.map(lambda x: x, params)
    past = left["cache"]["stack"]["layer_0"]["attention"]
    kinds = {kind: past[f"past_{kind}"] for kind in ("key", "value")}
    of_heads = {kind: x.reshape(-1, *x.shape[-2:]) for kind, x in kinds.items()}  # of the one row
    with_prefix["stack"]["layer_0"]["attention"]["mechanism"] = {
        f"prefix_{kind}": {"vectors": x[:, :P].swapaxes(0, 1)} for kind, x in of_heads.items()
    }
    hidden = adapted.apply({"params": with_prefix}, batch_of(tokens[:, P:]))
    np.testing.assert_allclose(hidden, expected[:, P:], atol=1e-5)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize(
    "architecture", ["decoder", pytest.param("encoder", marks=pytest.mark.slow)]
)
def test_packed_documents_see_what_is_added_and_not_each_other(method, architecture):
    model = prompted(method, **{"model.architecture": architecture})
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    rows = {"tokens": words(1, L + 1), "segments": segments}
    batch = causal(rows)
    params = init(model, batch)
    hidden = model.apply({"params": params}, batch)
    other = batch.replace(inputs=batch.inputs.at[0, 1].add(1) % V)
    moved = np.abs(model.apply({"params": params}, other) - hidden).max(-1)[0] > 0
    assert moved[1] and not moved[3:5].any()
    changed = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 1.0 * (path[-1].key == "vectors"), params
    )
    moved = np.abs(model.apply({"params": changed}, batch) - hidden).max(-1)[0] > 0
    assert moved[:5].all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_cached_decoding_continues_as_the_whole_text_says(method):
    model = prompted(method)
    prompts = [np.asarray(words(4, seed=1)), np.asarray(words(2, seed=2))]
    params = init(model, batch_of(words(1, L)))
    drawn = np.stack(
        list(generate(model, params, prompts, max_new_tokens=3, temperature=0.0)), axis=1
    )
    for prompt, found in zip(prompts, drawn, strict=True):
        text = np.concatenate([prompt, found])[None]
        log_probs = model.apply({"params": params}, batch_of(jnp.asarray(text)), method="log_probs")
        np.testing.assert_array_equal(log_probs[0, len(prompt) - 1 : -1].argmax(-1), found)
