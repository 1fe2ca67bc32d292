"""Meshes of several slices of TPUs: only copies of the model are in different ones."""

import dataclasses

import jax
import pytest

from lm.devices import sharding
from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


CHIPS = [
    Chip(8 * i + 4 * x + y, i, (x, y, 0)) for i in range(2) for x in range(2) for y in range(4)
]


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (4, 2, 1, 2), (-1, 1, 1, 4), (2, 8, 1, 1)])
def test_devices_that_differ_in_other_axes_than_data_are_of_one_slice(sizes):
    mesh = sharding.make_mesh(*sizes, devices=CHIPS)
    assert mesh.size == 16
    of_copies = [{chip.slice_index for chip in copy.flat} for copy in mesh.devices]
    half = len(of_copies) // 2
    assert of_copies == [{0}] * half + [{1}] * half


def test_a_copy_of_the_model_in_two_slices_is_refused_by_name():
    message = "config.mesh.data = 1 is not divisible by 2 slices, .* use 2 or a multiple of it"
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(1, 16, devices=CHIPS)


def test_devices_without_slices_are_one():
    assert sharding.make_mesh(2, devices=jax.devices()[:2]).shape["data"] == 2


@pytest.mark.parametrize(
    ("shape", "split"),
    [((4, 3, 6, 8), (("data", "fsdp"), None, "tensor", None)), ((3, 2, 5, 8), (None,) * 4)],
)
def test_rows_and_heads_are_split_where_they_divide_whatever_came_before(shape, split):
    mesh = sharding.make_mesh(2, 2, 1, 2)
    features = jax.NamedSharding(mesh, jax.P(None, None, None, "fsdp"))
    with jax.set_mesh(mesh):
        x = jax.device_put(jax.numpy.ones(shape), features)
        found = jax.jit(sharding.split_heads)(x)
    assert found.sharding.is_equivalent_to(jax.NamedSharding(mesh, jax.P(*split)), 4)
    assert sharding.split_heads(x) is x
