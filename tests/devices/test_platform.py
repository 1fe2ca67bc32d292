"""A program takes the paths of the devices that it is made for, not those of its host."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from lm.attention import Mask, attend
from lm.attention.kernels import Kernel, choose
from lm.devices.platform import device_count, platform
from lm.devices.sharding import make_mesh
from lm.output import OUTPUTS
from lm.softmax import WEIGHTINGS


def described(kind, name, devices=4):
    """A mesh of devices that are not there."""
    return AbstractMesh((devices,), ("x",), abstract_device=AbstractDevice(kind, 1, name))


TPU, GPU = described("TPU v5 lite", "tpu"), described("NVIDIA H100 80GB HBM3", "gpu")


def attention(query):
    return jax.vjp(lambda q: attend(q, q, q, mask=Mask(causal=True)), query)[0]


def entmax(scores):
    return WEIGHTINGS["entmax15"].apply(scores)


def loss(hidden):
    head = OUTPUTS["plif"](16, 8)
    return head.init_with_output(jax.random.key(0), hidden, jnp.zeros(8, int), method="loss")[0]


@pytest.mark.parametrize(
    ("program", "shape"), [(attention, (1, 64, 2, 8)), (entmax, (4096, 64)), (loss, (8, 8))]
)
def test_a_program_for_described_devices_has_no_part_that_is_there_for_cpus(program, shape):
    array = jax.ShapeDtypeStruct(shape, jnp.float32)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        here = str(jax.make_jaxpr(program)(array))
    for mesh in (TPU, GPU):
        with jax.sharding.use_abstract_mesh(mesh):
            there = str(jax.make_jaxpr(program)(array))
        assert "optimization_barrier" not in there
        assert there.count(" = ") < here.count(" = ")  # equations


def test_the_platform_is_that_of_the_mesh_and_else_of_the_default_device():
    assert platform() == "cpu" and device_count() == jax.device_count()
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert platform() == "cpu" and device_count() == 1
    for mesh, name in ((TPU, "tpu"), (GPU, "gpu"), (described("H100", "cuda"), "gpu")):
        with jax.sharding.use_abstract_mesh(mesh):
            assert platform() == name and device_count() == 4
    with jax.default_device(jax.devices()[0]):
        assert platform() == "cpu"


def test_a_vendors_kernel_is_taken_for_the_devices_of_the_mesh():
    array = jax.ShapeDtypeStruct((1, 64, 2, 64), jnp.bfloat16)
    assert choose(array, array, array, Mask(), "softmax", True) == (None, "")
    for mesh, taken in ((GPU, Kernel.CUDNN), (described("AMD MI300X", "rocm"), None)):
        with jax.sharding.use_abstract_mesh(mesh):
            assert choose(array, array, array, Mask(), "softmax", True).kernel == taken
