"""Attention with positions split over devices is that of one device, in a part of its memory."""

import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.attention import ATTENTIONS, Mask, attend
from lm.attention.positions import AlibiBias, alibi_slopes
from lm.attention.sequence import describe_split, is_ring
from lm.devices import sharding
from lm.softmax import WEIGHTINGS
from tests.attention.test_attention import (
    SEGMENTS,
    check_same,
    context_and_gradient,
    parameters,
    tensors,
)

# One of each way: merged sums, with a sink, with signs, with lengths, plain sums, gathered keys.
WAYS = ("softmax", "sink", "cog", "ssmax", "sigmoid", "entmax15")
REST = [name for name, record in WEIGHTINGS.items() if name not in WAYS and not record.random]


def check_split(weighting, mask, bias=None, **sizes):
    arrays = tensors(**sizes)
    for query_chunk_size in (None, 2):
        options = {"weighting": weighting, "query_chunk_size": query_chunk_size}
        expected = context_and_gradient(arrays, mask, bias, **options)
        with jax.set_mesh(sharding.make_mesh(1, 1, 3, 1)):
            found = context_and_gradient(arrays, mask, bias, **options)
        check_same(found, expected)


@pytest.mark.parametrize(
    "weighting", [*WAYS, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]
)
def test_split_positions_give_the_contexts_and_gradients_of_one_device(weighting):
    check_split(weighting, Mask(causal=True, segments=SEGMENTS))


@pytest.mark.parametrize("weighting", ["softmax", "sparsemax"])
def test_split_positions_see_what_the_mask_says(weighting):
    rng = np.random.default_rng(1)
    padding, prefix = rng.random((2, 12)) < 0.7, rng.random((2, 12)) < 0.3
    check_split(weighting, Mask(causal=True, prefix=prefix, padding=padding))
    check_split(weighting, Mask(causal=True, window=3), AlibiBias(alibi_slopes(4)))
    check_split(weighting, Mask(offset=-1, causal=True))


@pytest.mark.parametrize("weighting", ["softmax", "sparsemax"])
def test_lengths_that_do_not_divide_and_other_keys_are_padded_unseen(weighting):
    queries, keys = SEGMENTS[:, :7], np.concatenate([SEGMENTS, SEGMENTS[:, :1]], axis=1)
    mask = Mask(segments=queries, key_segments=keys)
    check_split(weighting, mask, queries=7, keys=13)
    check_split(weighting, Mask(), queries=5, keys=7)


@pytest.mark.parametrize("name", [n for n, w in WEIGHTINGS.items() if w.exponents is not None])
def test_exponents_give_the_weights(name):
    record, own = WEIGHTINGS[name], parameters(name)["learned"]
    rng = np.random.default_rng(2)
    scores = jnp.asarray(30.0 * rng.normal(size=(3, 4, 5, 9)), jnp.float32)
    where = jnp.asarray(rng.random(scores.shape) < 0.6).at[0, 0, 0].set(False)
    learned = {name: values[:, None, None] for name, values in own.items()}
    z = jnp.where(where, scores, 0.0)
    n = jnp.maximum(jnp.sum(where, axis=-1, keepdims=True), 1.0)
    sink = learned.pop("sink", jnp.zeros(())) if record.sink else -jnp.inf
    x = jnp.where(where, record.exponents(z, n, **learned), -jnp.inf)
    x = jnp.concatenate([x, jnp.broadcast_to(sink, (*x.shape[:-1], 1))], axis=-1)
    weights = jnp.where(jnp.any(x > -jnp.inf, -1, keepdims=True), jax.nn.softmax(x), 0.0)[..., :-1]
    weights = weights if record.factor is None else record.factor(z) * weights
    expected = record.apply(scores, where, **{k: v[:, None, None] for k, v in own.items()})
    np.testing.assert_allclose(weights, expected, atol=2e-6)


def compiled_gradient(weighting, length, devices):
    """Of causal attention whose rows are split over so many devices."""
    mesh = sharding.make_mesh(1, 1, devices, 1)
    split = NamedSharding(mesh, PartitionSpec(None, "sequence"))
    row = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32, sharding=split)

    def total(query, key, value):
        mask = Mask(causal=True)
        return attend(query, key, value, mask=mask, weighting=weighting).sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)), out_shardings=split)
        return gradient.lower(row, row, row).compile()


def test_temporaries_of_long_rows_fall_with_the_number_of_devices():
    sizes = [
        compiled_gradient("softmax", 16384, devices).memory_analysis().temp_size_in_bytes
        for devices in (1, 2, 4, 8)
    ]
    assert all(after < 0.6 * before for before, after in itertools.pairwise(sizes))


def test_no_device_of_a_ring_holds_a_whole_row():
    def longest(weighting):
        text = compiled_gradient(weighting, 4096, 8).as_text()
        shapes = re.findall(r"\w\d+\[(\d[\d,]*)\]", text)
        return max(int(size) for shape in shapes for size in shape.split(","))

    assert longest("softmax") == 4096 // 8
    assert longest("entmax15") == 4096


def test_the_log_says_how_keys_meet_queries():
    ring = "256 queries on each device, 256 at a time, keys passed around 4 devices"
    assert describe_split(1024, 4, True, None) == ring
    gathered = "4096 queries on each device, 128 at a time, keys gathered from 4 devices"
    assert describe_split(16384, 4, False, None) == gathered


def test_the_documents_table_says_which_way_every_weighting_and_mechanism_goes():
    text = pathlib.Path("docs/concepts/meshes.md").read_text()
    rows = dict(re.findall(r"^\| (.*`.*) \| (travel|are gathered) .*\|$", text, re.MULTILINE))
    way = {name: kind for names, kind in rows.items() for name in re.findall(r"`(\w+)`", names)}
    kinds = {True: "travel", False: "are gathered"}
    found = {name: way.get(name, "are gathered") for name in WEIGHTINGS}
    assert found == {name: kinds[is_ring(name)] for name in WEIGHTINGS}
    gathered = {n for n, mechanism in ATTENTIONS.items() if mechanism.owns_weights}
    gathered |= {n for n, mechanism in ATTENTIONS.items() if mechanism.mixes_heads}
    assert {name for name in way if name in ATTENTIONS} == gathered
    assert all(way[name] == "are gathered" for name in gathered)
