"""The head's TPU kernels by the TPU's own compiler (pip install '.[tpu]')."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.devices.sharding import make_mesh
from lm.devices.slices import open_slice
from lm.output import OUTPUTS
from lm.output.kernels import fused_logit_stats
from lm.output.logit_transform import LogitTransform
from lm.output.sharded import output_shards

pytestmark = pytest.mark.slow
PLAIN, CHIPS = LogitTransform(), ("v4-8", "v5e-1", "v5p-8", "v6e-1")


def devices_of(on):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip(f"{on} needs libtpu: pip install '.[tpu]'")
    return open_slice(on).devices


def compiled(on, transform=PLAIN, dtype="bfloat16", vocab=32_768, features=768, bias=False):
    """Statistics of 4,096 tokens and their gradients on one chip."""
    mesh = Mesh(np.array(devices_of(on)[:1]), ("x",))
    array = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
    hidden, table = array((4096, features), dtype), array((vocab, features), jnp.float32)
    vector = array((vocab,), jnp.float32) if bias else None

    def total(hidden, table, vector, targets):
        given = (hidden, table, vector, targets, dtype, bias, bias, None, transform)
        return sum(jnp.sum(each) for each in fused_logit_stats(*given))

    arguments = (hidden, table, vector, array((4096,), jnp.int32))
    places = (0, 1, 2) if bias else (0, 1)
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(total, argnums=places)).lower(*arguments).compile()


@pytest.mark.parametrize("on", CHIPS)
@pytest.mark.parametrize("name", ["softmax", "cap", "sigsoftmax"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias, mean and entropy"])
def test_every_transform_has_kernels_of_each_tpu(on, name, bias):
    options = {"cap": 30.0} if name == "cap" else {}
    head = OUTPUTS["sigsoftmax" if name == "sigsoftmax" else "softmax"](1, 1, **options)
    compiled(on, head.logit_transform, bias=bias)


@pytest.mark.parametrize("on", CHIPS)
@pytest.mark.parametrize(
    ("vocab", "features", "dtype"),
    [(50_257, 512, "bfloat16"), (32_768, 640, "float32"), (128_256, 1664, "bfloat16")],
)
def test_every_size_has_kernels(on, vocab, features, dtype):
    compiled(on, vocab=vocab, features=features, dtype=dtype)


def test_no_logit_is_stored():
    memory = compiled("v6e-1", vocab=131_072).memory_analysis()
    # The table in bfloat16, and a few numbers of each token.
    assert memory is not None
    assert memory.temp_size_in_bytes < 1.1 * 131_072 * 768 * 2


@pytest.mark.parametrize("mesh", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 1, 1, 8)])
def test_a_head_on_eight_devices_has_kernels_on_each(mesh):
    mesh = make_mesh(*mesh, devices=devices_of("v6e-8"))
    head = OUTPUTS["softmax"](
        65_536, 768, dtype=jnp.bfloat16, shards=output_shards(mesh), cap=30.0, bias=True
    )

    def array(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes))
        )

    tokens = (("sequence", "data", "fsdp"),)
    params = {
        "table": array((65_536, 768), jnp.float32, "tensor", "fsdp"),
        "bias": array((65_536,), jnp.float32, "tensor"),
    }
    arguments = (
        array((32_768, 768), jnp.bfloat16, *tokens),
        array((32_768,), jnp.int32, *tokens),
        array((32_768,), jnp.float32, *tokens),
    )

    def total(params, hidden, targets, weights):
        return head.apply({"params": params}, hidden, targets, weights, method="loss_sum")

    with jax.set_mesh(mesh):
        assert "by TPU kernels" in head.describe(32_768)
        function = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        text = function.lower(params, *arguments).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
