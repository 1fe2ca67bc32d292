"""The TPU's attention kernel, interpreted on this machine, is the plain path: its contexts, and the
gradients of queries, keys, values and of what a weighting learns.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import Mask, attend
from lm.attention.kernels import Choice, Kernel, backward, choose
from lm.attention.kernels.attention import find_family, kernel_attention
from lm.attention.kernels.threshold import expm1
from lm.attention.kernels.tiles import Tiles
from lm.devices.sharding import described_mesh, make_mesh, over_rows_and_heads
from lm.softmax import WEIGHTINGS

LENGTH = 200  # of two tiles, the second in part
TPU, GPU = described_mesh("TPU v5 lite", "tpu"), described_mesh("NVIDIA H100 80GB HBM3", "gpu")
TAKEN = [name for name, record in WEIGHTINGS.items() if find_family(record)]


def documents(batch=2, length=LENGTH):
    """Segments of a few documents in each row, the last places padding."""
    segments = np.cumsum(np.random.default_rng(1).random((batch, length)) < 0.02, axis=1) + 1
    segments[:, -7:] = 0
    return jnp.asarray(segments, jnp.int32)


def padding(batch=2, length=LENGTH):
    """Real keys, of which the first row has none."""
    return jnp.asarray(np.arange(length)[None] < np.array([[0], [150]])[:batch])


MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(window=40),
    "causal window": Mask(causal=True, window=130),
    "documents": Mask(causal=True, segments=documents()),
    "documents, both ways": Mask(segments=documents()),
    "documents and window": Mask(causal=True, window=20, segments=documents()),
    "padding": Mask(padding=padding()),
    "documents and padding": Mask(segments=documents(), padding=padding()),
}


def inputs(weighting, dtype=jnp.float32, batch=2, heads=4, groups=2, size=16, width=24):
    """Queries, keys, values, what the weighting learns, and the gradient of the contexts."""
    rng = np.random.default_rng(0)
    shapes = [(batch, LENGTH, heads, size), (batch, LENGTH, groups, size)]
    shapes += [(batch, LENGTH, groups, width), (batch, LENGTH, heads, width)]
    query, key, value, grads = (jnp.asarray(2 * rng.normal(size=s), dtype) for s in shapes)
    record = WEIGHTINGS[weighting]
    names = (*record.learned, *record.learnable)
    learned = {name: jnp.asarray(rng.uniform(0.5, 1.5, heads), jnp.float32) for name in names}
    return (query, key, value, learned), grads


def results(function, arrays, grads):
    contexts, gradient = jax.vjp(function, *arrays)
    return contexts, *jax.tree.leaves(gradient(grads))


def by_kernel(weighting, mask):
    record = WEIGHTINGS[weighting]

    def function(query, key, value, learned):
        options = {k: v for k, v in record.options.items() if k not in learned}
        return kernel_attention(
            query, key, value, mask, record, options, learned, size=128, interpret=True
        )

    return function


def by_plain_path(weighting, mask):
    def function(query, key, value, learned):
        options = {k: v for k, v in WEIGHTINGS[weighting].options.items() if k not in learned}
        return attend(
            query,
            key,
            value,
            mask=mask,
            weighting=weighting,
            options=options,
            learned=learned,
            query_chunk_size=0,
        )

    return function


def check(weighting, mask, tolerance=1e-5, change=lambda *arrays: arrays):
    arrays, grads = inputs(weighting)
    arrays = change(*arrays)
    actual = results(by_kernel(weighting, mask), arrays, grads)
    expected = results(by_plain_path(weighting, mask), arrays, grads)
    for one, other in zip(actual, expected, strict=True):
        scale = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("weighting", "kind"), [("sigmoid", "documents"), ("temperature", "causal window")]
)
def test_a_weighting_by_the_kernel_is_that_of_the_plain_path(weighting, kind):
    check(weighting, MASKS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("weighting", TAKEN)
def test_every_weighting_by_the_kernel_is_that_of_the_plain_path(weighting):
    # A learned scale multiplies scores and log n, so that its gradient sums large numbers.
    check(weighting, MASKS["causal"], 5e-5 if weighting == "ssmax" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["sparsemax", "entmax", "top_k"])
def test_tiles_without_weight_are_left_out(weighting):
    def change(query, key, value, learned):
        near = jnp.arange(LENGTH)[:, None, None] < 128
        return jnp.abs(query) + 1.0, jnp.where(near, jnp.abs(key) + 1.0, -1.0), value, learned

    check(weighting, Mask(), change=change)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["all", "causal", "window", "documents"])
def test_of_equal_scores_the_kernel_chooses_the_first(kind):
    def change(query, key, value, learned):
        return query, jnp.round(key[:, :, :, :1].repeat(16, 3)), value, learned

    check("top_k", MASKS[kind], change=change)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["softmax", "sigmoid", "taylor", "entmax15"])
def test_rows_too_long_for_a_cores_memory_have_their_gradients_by_two_kernels(
    weighting, monkeypatch
):
    monkeypatch.setattr(backward, "core_memory", lambda: 0)
    check(weighting, MASKS["documents"])


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["softmax", "sink", "sigmoid", "taylor", "entmax15", "top_k"])
@pytest.mark.parametrize("kind", MASKS)
def test_every_mask_hides_from_the_kernel_what_it_hides_from_the_plain_path(kind, weighting):
    check(weighting, MASKS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["softmax", "sigmoid", "cog", "entmax15"])
def test_the_kernel_in_bfloat16_differs_from_float32_by_its_rounding(weighting):
    arrays, grads = inputs(weighting, jnp.bfloat16)
    full = jax.tree.map(lambda x: x.astype(jnp.float32), (arrays, grads))
    found = results(by_kernel(weighting, MASKS["documents"]), arrays, grads)
    for one, exact in zip(
        found, results(by_plain_path(weighting, MASKS["documents"]), *full), strict=True
    ):
        error = jnp.linalg.norm(one.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 2**-7  # two roundings to eight digits


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["softmax", "sigmoid", "taylor", "cog", "entmax15", "top_k"])
def test_the_kernel_in_float32_is_within_its_rounding_of_float64(weighting):
    arrays, grads = inputs(weighting)
    found = results(by_kernel(weighting, MASKS["documents"]), arrays, grads)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (arrays, grads))
        exact = results(by_plain_path(weighting, MASKS["documents"]), *wide)
    for one, other in zip(found, exact, strict=True):
        assert other.dtype == jnp.float64
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(np.max(np.abs(other))))


@pytest.mark.slow
def test_the_kernel_on_eight_devices_is_that_on_one():
    arrays, grads = inputs("temperature", batch=4)
    mask = Mask(causal=True, segments=documents(4))

    def split(query, key, value, learned):
        def on_one(query, key, value, mask, learned):
            return by_kernel("temperature", mask)(query, key, value, learned)

        return over_rows_and_heads(on_one, (query, key, value), mask, learned)

    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        actual = jax.jit(lambda arrays: results(split, arrays, grads))(arrays)
    expected = results(by_kernel("temperature", mask), arrays, grads)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * float(jnp.max(jnp.abs(other))))


@pytest.mark.parametrize("kind", ["all", "causal", "window", "causal window"])
@pytest.mark.parametrize(("queries", "keys"), [(30, 30), (150, 200), (200, 150)])
def test_rows_are_as_long_as_their_masks_say(kind, queries, keys):
    mask = MASKS[kind]
    visible = mask.visible(0, queries, 0, keys)
    count = keys if visible is None else np.sum(visible, axis=-1)[0, 0]
    found = Tiles(queries, keys, 128, 128, mask.causal, mask.window).row_lengths()
    np.testing.assert_array_equal(found, np.broadcast_to(np.maximum(count, 1), queries))


def test_expm1_by_what_tpu_kernels_have_is_exact_near_zero_and_far_from_it():
    y = np.linspace(-20, 20, 40_001, dtype=np.float32)
    np.testing.assert_allclose(expm1(jnp.asarray(y)), np.expm1(y.astype(np.float64)), rtol=6e-7)


def chosen(weighting="softmax", mask=Mask(causal=True), length=1024, batch=2, **shape):  # noqa: B008 (frozen)
    dtype, groups = shape.pop("dtype", jnp.bfloat16), shape.pop("groups", 2)
    query = jax.ShapeDtypeStruct((batch, length, 4, 64), dtype)
    key = jax.ShapeDtypeStruct((batch, length, groups, 64), dtype)
    options = shape.pop("options", {})
    return choose(query, key, key, mask, weighting, shape.pop("scores_alone", True), options)


def test_a_kernel_is_chosen_by_device_weighting_and_mask_and_else_the_reason_is_told():
    assert chosen() == Choice(None)
    with jax.sharding.use_abstract_mesh(GPU):
        assert chosen() == Choice(Kernel.CUDNN)
        assert chosen("sigmoid") == Choice(None, "sigmoid has none on a GPU")
    with jax.sharding.use_abstract_mesh(TPU):
        assert chosen() == chosen("entmax", dtype=jnp.float32) == Choice(Kernel.TPU)
        assert chosen(mask=Mask(segments=documents(2, 1024), window=9)) == Choice(Kernel.TPU)
        reasons = {
            "gumbel_softmax has none on a TPU": chosen("gumbel_softmax"),
            "rows are shorter than 512": chosen(length=256),
            "entmax has none at an alpha outside 1 to 2": chosen("entmax", options={"alpha": 2.5}),
            "entmax has none for rows of more than 65,536 keys": chosen("entmax", length=65_537),
            "the mask has an offset or a prefix": chosen(mask=Mask(offset=3)),
            "float16 is neither bfloat16 nor float32": chosen(dtype=jnp.float16),
            "something is added to the scores": chosen(scores_alone=False),
        }
    for reason, choice in reasons.items():
        assert choice == Choice(None, reason)


def test_rows_and_heads_that_do_not_divide_over_the_mesh_have_no_kernel():
    with jax.set_mesh(make_mesh(data=4, tensor=2)):
        mesh = jax.sharding.get_abstract_mesh().update(abstract_device=TPU.abstract_device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert chosen(batch=4).kernel is Kernel.TPU
            for choice in (chosen(batch=2), chosen(batch=4, groups=1)):
                assert choice == Choice(None, "rows or heads do not divide over the mesh")
