"""`attend` computes the weighted mean that it says, by every path, and lets nothing leak."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import Mask, attend
from lm.attention.positions import alibi_slopes, rotate
from lm.softmax import WEIGHTINGS

attend_module = sys.modules["lm.attention.attend"]
EVERY = pytest.mark.parametrize("weighting", WEIGHTINGS)


def tensors(batch=2, queries=12, keys=12, heads=4, groups=2, size=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, queries, heads, size)] + [(batch, keys, groups, size)] * 2
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def learned(weighting, heads=4):
    return {name: jnp.linspace(-1, 1, heads) for name in WEIGHTINGS[weighting].learned}


SEGMENTS = np.array([[1] * 5 + [2] * 7, [1] * 9 + [2] * 2 + [0]], np.int32)


def masks():
    padding = np.ones((2, 12), bool)
    padding[1, 8:] = False
    return {
        "all": Mask(),
        "causal": Mask(causal=True),
        "window": Mask(causal=True, window=3),
        "documents": Mask(causal=True, segments=SEGMENTS),
        "padding": Mask(padding=padding),
    }


def naive(query, key, value, visible, weighting):
    """Loops over batch and heads with the weighting's own function."""
    batch, _, heads, size = query.shape
    out = np.zeros(query.shape, np.float32)
    parameters = learned(weighting, heads)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // key.shape[2])
            scores = query[b, :, h] @ key[b, :, g].T * size**-0.5
            own = {name: values[h] for name, values in parameters.items()}
            weights = WEIGHTINGS[weighting].apply(scores, visible[b], **own)
            out[b, :, h] = weights @ value[b, :, g]
    return out


def agree(actual, expected, atol):
    """The tolerance is for contexts of about one; weights that do not sum to one give larger."""
    size = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, atol=atol * size)


@EVERY
@pytest.mark.parametrize("kind", masks())
def test_attend_agrees_with_loops(weighting, kind):
    query, key, value = tensors()
    mask = masks()[kind]
    visible = mask.visible(0, 12, 12)
    visible = (
        np.ones((2, 12, 12), bool)
        if visible is None
        else np.broadcast_to(visible, (2, 1, 12, 12))[:, 0]
    )
    actual = attend(query, key, value, mask=mask, weighting=weighting, learned=learned(weighting))
    expected = naive(query, key, value, visible, weighting)
    agree(actual, expected, atol=2e-6)


@EVERY
@pytest.mark.parametrize("block", [1, 4, 5, 64])
def test_blocks_of_queries_agree_with_the_plain_path_forward_and_backward(weighting, block):
    tensors_ = tensors()
    mask = Mask(causal=True, segments=SEGMENTS)

    def total(arrays, block):
        out = attend(
            *arrays, mask=mask, weighting=weighting, learned=learned(weighting), block=block
        )
        return jnp.sum(jnp.sin(out)), out

    (_, plain), plain_gradient = jax.value_and_grad(total, has_aux=True)(tensors_, 0)
    (_, blocked), blocked_gradient = jax.value_and_grad(total, has_aux=True)(tensors_, block)
    agree(blocked, plain, atol=1e-6)
    for a, b in zip(blocked_gradient, plain_gradient, strict=True):
        agree(a, b, atol=2e-6)


@EVERY
@pytest.mark.parametrize("length", [32, 45])
def test_parts_of_the_triangle_agree_with_the_plain_path_forward_and_backward(weighting, length):
    arrays = tensors(queries=length, keys=length)
    segments = np.cumsum(np.random.default_rng(3).random((2, length)) < 0.1, axis=1)
    mask = Mask(causal=True, segments=segments.astype(np.int32))
    assert attend_module._is_triangular(mask, length, length)

    def total(arrays, block):
        own = {"weighting": weighting, "learned": learned(weighting), "slopes": alibi_slopes(4)}
        out = attend(*arrays, mask=mask, block=block, **own)
        return jnp.sum(jnp.sin(out)), out

    (_, plain), plain_gradient = jax.value_and_grad(total, has_aux=True)(arrays, 0)
    (_, parts), parts_gradient = jax.value_and_grad(total, has_aux=True)(arrays, None)
    agree(parts, plain, atol=1e-6)
    for a, b in zip(parts_gradient, plain_gradient, strict=True):
        agree(a, b, atol=2e-6)


@EVERY
@pytest.mark.parametrize("jit", [False, True])
def test_later_keys_and_other_documents_get_exactly_zero_gradient(weighting, jit):
    query, key, value = tensors()
    mask = Mask(causal=True, segments=SEGMENTS)

    def outputs(key, value):
        return attend(
            query, key, value, mask=mask, weighting=weighting, learned=learned(weighting)
        )[0, 6].sum()

    gradient = jax.grad(outputs, argnums=(0, 1))
    for g in (jax.jit(gradient) if jit else gradient)(key, value):
        assert (np.asarray(g)[0, 7:] == 0).all()
        assert (np.asarray(g)[0, :5] == 0).all()
        assert (np.asarray(g)[1] == 0).all()
        assert (np.asarray(g)[0, 5:7] != 0).any()


@EVERY
def test_no_part_of_the_triangle_lets_a_later_key_or_another_document_through(weighting):
    query, key, value = tensors(queries=40, keys=40)
    segments = np.repeat([[1, 2]], 20, axis=1).repeat(2, axis=0).astype(np.int32)
    mask = Mask(causal=True, segments=segments)

    def outputs(key, value):
        own = {"weighting": weighting, "learned": learned(weighting)}
        return attend(query, key, value, mask=mask, **own)[0, 25].sum()

    for g in jax.jit(jax.grad(outputs, argnums=(0, 1)))(key, value):
        seen = (np.asarray(g) != 0).any((-2, -1))
        assert not seen[0, :20].any() and not seen[0, 26:].any() and not seen[1].any()
        assert seen[0, 20:26].any()


@EVERY
def test_attention_from_an_offset_is_the_end_of_the_whole(weighting):
    query, key, value = tensors()
    own = {"weighting": weighting, "learned": learned(weighting)}
    whole = attend(query, key, value, mask=Mask(causal=True), **own)
    end = attend(query[:, 9:], key, value, mask=Mask(causal=True, offset=9), **own)
    np.testing.assert_allclose(end, whole[:, 9:], atol=1e-6)


def test_blocks_need_memory_linear_in_length():
    def temporaries(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

        def total(query, key, value):
            return attend(query, key, value, mask=Mask(causal=True), block=64).sum()

        compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(2048) < 2.5 * temporaries(1024)


def test_alibi_subtracts_slope_times_distance():
    query, key, value = tensors(groups=4)
    slopes = alibi_slopes(4)
    np.testing.assert_allclose(slopes, [2**-2, 2**-4, 2**-6, 2**-8])
    distance = np.abs(np.arange(12)[:, None] - np.arange(12))
    scores = np.einsum("bqhk,bshk->bhqs", query, key) * 8**-0.5
    weights = jax.nn.softmax(scores - slopes[:, None, None] * distance)
    expected = np.einsum("bhqs,bshk->bqhk", weights, value)
    np.testing.assert_allclose(attend(query, key, value, slopes=slopes), expected, atol=1e-6)


def test_rotary_scores_depend_on_differences_of_positions_only():
    query, key, _ = tensors(groups=4)
    places = np.arange(12)[None].repeat(2, 0)

    def scores(shift):
        q, k = rotate(query, places + shift), rotate(key, places + shift)
        return jnp.einsum("bqhk,bshk->bhqs", q, k)

    np.testing.assert_allclose(scores(0), scores(37), atol=1e-4)


def test_groups_must_divide_heads():
    query, _, _ = tensors(heads=4)
    _, key, value = tensors(groups=3)
    with pytest.raises(ValueError, match="3 key groups do not divide 4 heads"):
        attend(query, key, value)
