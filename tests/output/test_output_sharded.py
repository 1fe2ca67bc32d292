"""Words split over devices change no loss, and no device holds tokens x vocabulary."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.devices import sharding
from lm.output import OUTPUTS
from lm.output.sharded import output_shards

N, D, V = 32, 8, 48
EVERYTHING = {
    "bias": True,
    "cap": 9.0,
    "z_loss": 1e-2,
    "label_smoothing": 0.1,
    "focal": 1.5,
    "confidence_penalty": 0.1,
    "class_weights": tuple(np.linspace(0.5, 1.5, V).tolist()),
}
MESHES = [(8, 1, 1, 1), (4, 1, 1, 2), (1, 2, 1, 4), (1, 1, 1, 8), (2, 1, 2, 2)]
SPLITTING = [name for name in OUTPUTS if OUTPUTS[name].vocab_shardable]


def shards_of(mesh):
    return output_shards(sharding.make_mesh(*mesh))


@functools.cache
def problem(name, dtype=np.float32, words=V):
    """A head, random parameters, and what one device makes of them."""
    options = {**EVERYTHING, "class_weights": EVERYTHING["class_weights"][:words]}
    head = OUTPUTS[name](words, D, param_dtype=dtype, **(options if name == "softmax" else {}))
    rng = np.random.default_rng(0)
    hidden, targets = rng.normal(size=(N, D)).astype(dtype), rng.integers(0, words, N)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), hidden, targets, method="loss"))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, dtype), shapes)
    weights = rng.random(N).astype(dtype) * (rng.random(N) < 0.8)
    arguments = (params, hidden, targets, weights)
    return head, arguments, computed(head, *arguments)


def computed(head, params, hidden, targets, weights):
    """The total, its gradients, and the likelihoods."""

    def total(params, hidden):
        return head.apply(params, hidden, targets, weights, method="loss_sum")

    @jax.jit
    def everything(params, hidden):
        arguments = ("negative_log_likelihood", hidden, targets)
        nats = head.apply(params, *arguments, method="per_token")
        return jax.value_and_grad(total, argnums=(0, 1))(params, hidden), nats

    return jax.tree.map(np.asarray, everything(params, hidden))


def assert_equal(found, expected, tolerance):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())

    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(mesh):
    head, arguments, expected = problem("softmax")
    found = computed(head.clone(shards=shards_of(mesh), token_chunk_size=2), *arguments)
    assert_equal(found, expected, 1e-6)


@pytest.mark.parametrize("name", SPLITTING)
def test_every_head_that_splits_gives_the_same_with_its_words_split(name):
    # In float64: sums of plif's slopes cancel, and their order moves a float32 by 1e-6.
    with jax.enable_x64(True):
        head, arguments, expected = problem(name, np.float64)
        found = computed(head.clone(shards=shards_of((2, 2, 1, 2)), token_chunk_size=3), *arguments)
        assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("name", SPLITTING)
def test_words_that_do_not_divide_over_devices_split_tokens_instead(name):
    with jax.enable_x64(True):
        head, arguments, expected = problem(name, np.float64, 46)
        found = computed(head.clone(shards=shards_of((1, 2, 1, 4)), token_chunk_size=3), *arguments)
        assert_equal(found, expected, 1e-12)


def test_devices_with_different_numbers_of_tokens_that_count_find_the_same():
    head, (params, hidden, targets, weights), _ = problem("softmax")
    weights = weights * (np.arange(N) < 14)
    expected = computed(head, params, hidden, targets, weights)
    found = head.clone(shards=shards_of((2, 2, 1, 2)), target_fraction=0.3, token_chunk_size=2)
    assert_equal(computed(found, params, hidden, targets, weights), expected, 1e-6)


def test_split_words_lose_no_digit_in_float64():
    with jax.enable_x64(True):
        head, arguments, expected = problem("softmax", np.float64)
        found = computed(head.clone(shards=shards_of((1, 2, 1, 4)), token_chunk_size=4), *arguments)
        assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_the_compiled_program_holds_no_logits_of_all_words_and_moves_three_numbers_a_token(parts):
    tokens, features, words, token_chunk_size = 256, 16, 1040, 16
    mesh = sharding.make_mesh(8 // parts, 1, 1, parts)
    head = OUTPUTS["softmax"](
        words, features, shards=output_shards(mesh), token_chunk_size=token_chunk_size
    )

    def total(table, hidden, targets, weights):
        return head.apply({}, hidden, targets, weights, table, method="loss_sum")

    def array(dtype, axes, *shape):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    rows = (("sequence", "data", "fsdp"),)
    arguments = (
        array(jnp.float32, ("tensor",), words, features),
        array(jnp.float32, rows, tokens, features),
        array(jnp.int32, rows, tokens),
        array(jnp.float32, rows, tokens),
    )
    gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    text = gradients.lower(*arguments).compile().as_text()
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"\w\d+\[(\d[\d,]*)\]", text)]
    own = tokens * parts // 8
    assert max(max(shape) for shape in shapes) < words
    largest = max(token_chunk_size * words // parts, words * features // parts, own * features)
    assert max(math.prod(shape) for shape in shapes) == largest < own * words // parts
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text)
    moved = [shape for result in found for shape in re.findall(r"f32\[[\d,]*\]", result)]
    # Three for every chunk; and once the gradients of table and hidden states, and the loss.
    assert moved.count(f"f32[{token_chunk_size}]") == 3
    once = ["f32[]", f"f32[{own},{features}]", f"f32[{words // parts},{features}]"]
    assert set(moved) <= {f"f32[{token_chunk_size}]", *once} and len(moved) <= 6
