"""`attend` computes the weighted mean that it says, by every path, and lets nothing leak."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import Mask, attend
from lm.attention.chunking import describe, plan_blocks
from lm.attention.kernels.cudnn import cudnn_attention, supports_mask
from lm.attention.positions import (
    AlibiBias,
    RelativeBias,
    alibi_slopes,
    apply_rotary,
    bucket_of_distance,
)
from lm.softmax import WEIGHTINGS
from tests.attention_inputs import SEGMENTS, temporaries

EVERY = pytest.mark.parametrize("weighting", WEIGHTINGS)
# Random weightings draw anew for each query_chunk_size.
FIXED = pytest.mark.parametrize("weighting", [n for n, w in WEIGHTINGS.items() if not w.random])


def tensors(batch=2, queries=12, keys=12, heads=4, groups=2, size=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, queries, heads, size)] + [(batch, keys, groups, size)] * 2
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def parameters(weighting, heads=4):
    """Keywords of `attend` for a weighting."""
    record = WEIGHTINGS[weighting]
    return {
        "weighting": weighting,
        "learned": {name: jnp.linspace(0.5, 1.5, heads) for name in record.learned},
        "rng": jax.random.key(3) if record.random else None,
    }


@functools.partial(jax.jit, static_argnames=("weighting", "query_chunk_size"))
def context_and_gradient(arrays, mask, bias=None, weighting="softmax", query_chunk_size=None):
    """The context, and the gradient of a function of it."""

    def total(arrays):
        own = parameters(weighting) | {"position_bias": bias, "query_chunk_size": query_chunk_size}
        context = attend(*arrays, mask=mask, **own)
        return jnp.sum(jnp.sin(context)), context

    (_, context), gradient = jax.value_and_grad(total, has_aux=True)(arrays)
    return context, gradient


def check_same(actual, expected):
    """Tolerances are for values of about one; weights that do not sum to one give larger ones."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * max(1.0, float(np.abs(b).max())))


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


def by_hand(query, key, value, visible, weighting):
    """One matrix of scores, the weighting's own function, one sum."""
    own = parameters(weighting)
    key, value = (np.repeat(x, 2, axis=2) for x in (key, value))
    scores = np.einsum("bqhk,bshk->bhqs", query, key) * query.shape[3] ** -0.5
    learned = {name: values[:, None, None] for name, values in own["learned"].items()}
    if own["rng"] is not None:
        learned["key"] = jax.random.fold_in(own["rng"], 0)
    weights = WEIGHTINGS[weighting].apply(scores, visible, **learned)
    return np.einsum("bhqs,bshk->bqhk", weights, value)


@EVERY
@pytest.mark.parametrize("kind", ["documents", "padding"])
def test_attend_is_the_weighted_mean_of_the_values(weighting, kind):
    arrays, mask = tensors(), masks()[kind]
    actual = attend(*arrays, mask=mask, **parameters(weighting))
    visible = mask.visible(0, 12, 0, 12)
    check_same(actual, by_hand(*arrays, visible, weighting))


@pytest.mark.parametrize("kind", masks())
def test_every_kind_of_mask_hides_what_it_says(kind):
    arrays, mask = tensors(), masks()[kind]
    i, j = np.arange(12)[:, None], np.arange(12)
    documents = SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :]
    visible = {
        "all": np.ones((12, 12), bool),
        "causal": j <= i,
        "window": (j <= i) & (j > i - 3),
        "documents": documents & (j <= i),
        "padding": np.array([j < 12, j < 8])[:, None, None, :],
    }[kind]
    expected = by_hand(*arrays, np.broadcast_to(visible, (2, 1, 12, 12)), "softmax")
    np.testing.assert_allclose(attend(*arrays, mask=mask), expected, atol=2e-6)


@FIXED
def test_blocks_of_queries_agree_with_the_plain_path_forward_and_backward(weighting):
    mask = Mask(causal=True, segments=SEGMENTS)
    plain = context_and_gradient(tensors(), mask, weighting=weighting, query_chunk_size=0)
    check_same(
        context_and_gradient(tensors(), mask, weighting=weighting, query_chunk_size=5), plain
    )


@pytest.mark.parametrize("query_chunk_size", [pytest.param(1, marks=pytest.mark.slow), 5, 64])
@pytest.mark.parametrize("kind", masks())
def test_every_size_of_block_agrees_with_the_plain_path(kind, query_chunk_size):
    mask = masks()[kind]
    plain = context_and_gradient(tensors(), mask, weighting="entmax15", query_chunk_size=0)
    check_same(
        context_and_gradient(
            tensors(), mask, weighting="entmax15", query_chunk_size=query_chunk_size
        ),
        plain,
    )


@pytest.mark.parametrize("weighting", ["softmax", "log_length", "sink", "sigmoid", "entmax15"])
def test_parts_of_the_triangle_agree_with_the_plain_path_forward_and_backward(weighting):
    arrays = tensors(queries=45, keys=45)
    segments = np.cumsum(np.random.default_rng(3).random((2, 45)) < 0.1, axis=1)
    mask, slopes = Mask(causal=True, segments=segments.astype(np.int32)), AlibiBias(alibi_slopes(4))
    assert len(plan_blocks(45, 45, mask, None)) == 4
    plain = context_and_gradient(arrays, mask, slopes, weighting=weighting, query_chunk_size=0)
    check_same(context_and_gradient(arrays, mask, slopes, weighting=weighting), plain)


def test_the_log_says_which_path_is_taken():
    short = "64 queries at a time over 64 to 256 keys, weights kept"
    assert describe(256, True, None) == short
    assert describe(256, False, None) == "256 queries at once"
    long = "128 queries at a time over 4096 keys, weights recomputed in the backward pass"
    assert describe(4096, False, None) == long


@pytest.mark.parametrize("mask", [Mask(), Mask(causal=True), Mask(causal=True, window=4)])
@pytest.mark.parametrize("documents", [False, True])
def test_the_arguments_of_the_kernel_say_what_the_mask_says(mask, documents):
    arrays = tensors()
    if documents:
        mask = Mask(causal=mask.causal, window=mask.window, segments=SEGMENTS)
    assert supports_mask(arrays[0], mask)
    actual = cudnn_attention(*arrays, mask, implementation="xla")
    np.testing.assert_allclose(actual, attend(*arrays, mask=mask, query_chunk_size=0), atol=2e-6)


def test_what_the_kernel_cannot_say_is_left_to_the_other_paths():
    query, _, _ = tensors()
    for mask in (Mask(padding=np.ones((2, 12), bool)), Mask(window=3), Mask(offset=2)):
        assert not supports_mask(query, mask)
    for length in (1100, 129):  # cuDNN's backward pass takes a stored mask of an even length only
        packed = Mask(segments=np.ones((2, length), np.int32))
        assert not supports_mask(tensors(queries=length)[0], packed)
    assert supports_mask(tensors(queries=129)[0], Mask(causal=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("weighting", ["softmax", "entmax15", "sink"])
def test_blocks_over_a_window_of_keys_agree_with_the_plain_path(weighting, causal):
    arrays = tensors(queries=45, keys=45)
    padding = np.arange(45) < np.array([[45], [31]])
    mask = Mask(causal=causal, window=6, padding=padding)
    assert all(part.keys < 45 for part in plan_blocks(45, 45, mask, 8))
    buckets = RelativeBias(jax.random.normal(jax.random.key(5), (8, 4)), 16, causal)
    gates = np.cumsum(tensors()[0][..., 0], axis=1)
    gates = jnp.asarray(np.resize(gates, (2, 45, 4)))
    mixing = jnp.eye(4) + 0.1, jnp.eye(4) - 0.1

    @functools.partial(jax.jit, static_argnames="query_chunk_size")
    def run(operands, query_chunk_size):
        def total(operands):
            arrays, learned, bias, gates, mixing = operands
            own = {"learned": learned, "gates": (gates, gates), "mixing": mixing}
            own["position_bias"] = bias
            out = attend(
                *arrays, mask=mask, weighting=weighting, query_chunk_size=query_chunk_size, **own
            )
            return jnp.sum(jnp.sin(out)), out

        (_, out), gradient = jax.value_and_grad(total, has_aux=True)(operands)
        return out, gradient

    operands = (arrays, parameters(weighting)["learned"], buckets, gates, mixing)
    (plain, plain_gradient), (blocked, blocked_gradient) = run(operands, 0), run(operands, 8)
    np.testing.assert_allclose(blocked, plain, atol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (blocked_gradient, plain_gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def check_nothing_leaks(weighting, jit):
    """Query 25 of the first row sees keys 20 to 25: its document's, up to itself."""
    query, key, value = tensors(queries=40, keys=40)
    segments = np.repeat([[1, 2]], 20, axis=1).repeat(2, axis=0).astype(np.int32)
    mask = Mask(causal=True, segments=segments)

    def outputs(key, value):
        # Two different columns, as the gradient of one weight's sum over a row would vanish.
        return attend(query, key, value, mask=mask, **parameters(weighting))[0, 25, :, :2].sum()

    gradient = jax.grad(outputs, argnums=(0, 1))
    for g in (jax.jit(gradient) if jit else gradient)(key, value):
        seen = (np.asarray(g) != 0).any((-2, -1))
        assert not seen[0, :20].any() and not seen[0, 26:].any() and not seen[1].any()
        assert seen[0, 20:26].any()


@EVERY
def test_later_keys_and_other_documents_get_exactly_zero_gradient(weighting):
    check_nothing_leaks(weighting, jit=True)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["softmax", "entmax15"])
def test_they_do_without_jit_too(weighting):
    check_nothing_leaks(weighting, jit=False)


@FIXED
def test_attention_from_an_offset_is_the_end_of_the_whole(weighting):
    query, key, value = tensors()
    whole = attend(query, key, value, mask=Mask(causal=True), **parameters(weighting))
    late = Mask(causal=True, offset=9)
    end = attend(query[:, 9:], key, value, mask=late, **parameters(weighting))
    check_same(end, whole[:, 9:])


@pytest.mark.parametrize(
    "weighting",
    [
        "softmax",
        "entmax15",
        pytest.param("sink", marks=pytest.mark.slow),
        pytest.param("gumbel_softmax", marks=pytest.mark.slow),
    ],
)
def test_blocks_need_memory_linear_in_length(weighting):
    own = parameters(weighting, heads=2) | {"mask": Mask(causal=True), "query_chunk_size": 64}
    context = functools.partial(attend, **own)
    assert temporaries(context, 2048) < 2.5 * temporaries(context, 1024)


def test_alibi_subtracts_slope_times_distance():
    query, key, value = tensors(groups=4)
    slopes = alibi_slopes(4)
    np.testing.assert_allclose(slopes, [2**-2, 2**-4, 2**-6, 2**-8])
    distance = np.abs(np.arange(12)[:, None] - np.arange(12))
    scores = np.einsum("bqhk,bshk->bhqs", query, key) * 8**-0.5
    weights = jax.nn.softmax(scores - slopes[:, None, None] * distance)
    expected = np.einsum("bhqs,bshk->bqhk", weights, value)
    np.testing.assert_allclose(
        attend(query, key, value, position_bias=AlibiBias(slopes)), expected, atol=1e-6
    )


def test_relative_positions_have_small_distances_alone_and_large_ones_together():
    assert bucket_of_distance(8, 32).tolist() == [
        0, 1, 2, 3, *[4] * 3, *[5] * 5, *[6] * 8, *[7] * 13,
    ]  # fmt: skip
    table = jnp.arange(16.0)[:, None]
    distance = jnp.array([[[[3, 0, -3, -40, 40]]]])
    both = RelativeBias(table, 32, causal=False)(distance)
    np.testing.assert_array_equal(both[0, 0, 0], [3, 0, 11, 15, 7])
    causal = RelativeBias(table, 32, causal=True)(distance[..., [0, 1, 4]])
    np.testing.assert_array_equal(causal[0, 0, 0], [3, 0, 15])


def test_rotary_scores_depend_on_differences_of_positions_only():
    query, key, _ = tensors(groups=4)
    places = np.arange(12)[None].repeat(2, 0)

    def scores(shift):
        q, k = apply_rotary(query, places + shift), apply_rotary(key, places + shift)
        return jnp.einsum("bqhk,bshk->bhqs", q, k)

    np.testing.assert_allclose(scores(0), scores(37), atol=1e-4)


def test_groups_must_divide_heads():
    query, _, _ = tensors(heads=4)
    _, key, value = tensors(groups=3)
    with pytest.raises(ValueError, match="3 key groups do not divide 4 heads"):
        attend(query, key, value)
