"""The TPU's attention kernels by the TPU's own compiler (pip install '.[tpu]')."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.attention import Mask
from lm.attention.kernels.attention import find_family, kernel_attention
from lm.devices.slices import open_slice
from lm.softmax import WEIGHTINGS

pytestmark = pytest.mark.slow
TAKEN = [name for name, record in WEIGHTINGS.items() if find_family(record)]


def compiled(on, weighting, mask=None, length=2048, heads=4, groups=2, size=128, dtype="bfloat16"):
    """Forward and backward pass on one chip."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip(f"{on} needs libtpu: pip install '.[tpu]'")
    mesh = Mesh(np.array(open_slice(on).devices[:1]), ("x",))
    array = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
    query = array((1, length, heads, size), dtype)
    key = array((1, length, groups, size), dtype)
    segments = array((1, length), jnp.int32)
    record = WEIGHTINGS[weighting]
    names = (*record.learned, *record.learnable)
    options = {k: v for k, v in record.options.items() if k not in names}
    learned = {name: array((heads,), jnp.float32) for name in names}

    def both(query, key, value, learned, grads, segments):
        seen = mask(segments) if mask else Mask(causal=True)

        def attention(query, key, value, learned):
            return kernel_attention(query, key, value, seen, record, options, learned)

        contexts, gradient = jax.vjp(attention, query, key, value, learned)
        return contexts, gradient(grads)

    with jax.set_mesh(mesh):
        return jax.jit(both).lower(query, key, key, learned, query, segments).compile()


@pytest.mark.parametrize("weighting", TAKEN)
def test_every_weighting_has_a_kernel_of_each_tpu(weighting):
    for on in ("v5e-1", "v5p-8", "v6e-1"):
        compiled(on, weighting)


@pytest.mark.parametrize("weighting", ["sink", "sigmoid", "entmax15"])
@pytest.mark.parametrize(
    "mask",
    [
        lambda segments: Mask(),
        lambda segments: Mask(causal=True, window=300, segments=segments),
        lambda segments: Mask(padding=segments > 0),
    ],
    ids=["all", "documents and window", "padding"],
)
def test_every_mask_has_a_kernel(mask, weighting):
    compiled("v5e-1", weighting, mask, length=1100)


@pytest.mark.parametrize("weighting", ["softmax", "relu", "entmax15"])
@pytest.mark.parametrize(("size", "dtype"), [(64, "bfloat16"), (80, "float32"), (256, "bfloat16")])
def test_every_size_of_heads_has_a_kernel(size, dtype, weighting):
    compiled("v5e-1", weighting, size=size, dtype=dtype)
    compiled("v4-8", weighting, size=size, dtype=dtype)


@pytest.mark.parametrize("weighting", TAKEN)
def test_the_large_tiles_of_long_rows_fit_in_a_cores_memory(weighting):
    def documents(segments):
        return Mask(causal=True, segments=segments)

    for on in ("v4-8", "v5e-1", "v5p-8"):
        compiled(on, weighting, documents, length=8192, dtype="float32")


@pytest.mark.parametrize(("weighting", "longest"), [("softmax", 131_072), ("entmax15", 65_536)])
def test_temporaries_are_linear_in_the_length(weighting, longest):
    for length in (4096, longest):
        memory = compiled("v5e-1", weighting, length=length).memory_analysis()
        assert memory is not None
        # Of each row and head less than 20 numbers, or 8 arrays of the size of the queries.
        assert memory.temp_size_in_bytes < 8 * length * 4 * 128 * 2
