"""What the text of a compiled program says: loops, products, memory traffic and collectives."""

import jax
import jax.numpy as jnp
import pytest

from lm.experiment.plan.collectives import axes_of, collectives, replica_groups
from lm.experiment.plan.hlo import arrays, read_module
from lm.experiment.plan.traffic import memory_bytes, product_flops

MESH = {"data": 2, "fsdp": 4, "tensor": 2}

# As a TPU's compiler writes it: a loop without a stated number of trips whose counter goes up by
# two, a product as a convolution, an all-gather that two fusions share, and memory on the chip.
PROGRAM = """HloModule example

%part.1 (p: bf16[8,4]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[32,4]{1,0} all-gather(%p), SHARED
}

%part.2 (q: bf16[8,4]) -> bf16[32,4] {
  %q = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[32,4]{1,0} all-gather(%q), SHARED
}

%body (b: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %b = (s32[], f32[16,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[16,8]{1,0} get-tuple-element(%b), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %w = f32[8,8]{1,0:T(8,128)S(1)} constant({...})
  %y = f32[16,8]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %out = (s32[], f32[16,8]{1,0}) tuple(%next, %y)
}

%condition (c: (s32[], f32[16,8])) -> pred[] {
  %c = (s32[], f32[16,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: bf16[8,4], d: f32[16,8]) -> f32[16,8] {
  %a = bf16[8,4]{1,0} parameter(0)
  %d = f32[16,8]{1,0} parameter(1)
  %first = bf16[32,4]{1,0} fusion(%a), kind=kCustom, calls=%part.1
  %second = bf16[32,4]{1,0} fusion(%a), kind=kOutput, calls=%part.2
  %zero = s32[] constant(0)
  %begin = (s32[], /*index=1*/f32[16,8]{1,0}) tuple(%zero, %d)
  %loop = (s32[], f32[16,8]{1,0}) while(%begin), condition=%condition, body=%body
  ROOT %result = f32[16,8]{1,0} get-tuple-element(%loop), index=1
}
""".replace("SHARED", "channel_id=7, replica_groups=[4,4]<=[8,2]T(1,0), dimensions={0}")


def test_a_loop_runs_as_often_as_its_counter_takes_to_its_limit():
    module = read_module(PROGRAM)
    assert module.runs["body"] == 6 and module.unknown_loops == 0
    unknown = read_module(PROGRAM.replace("add(%i, %two)", "multiply(%i, %two)"))
    assert unknown.runs["body"] == 1 and unknown.unknown_loops == 1
    said = PROGRAM.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    )
    assert read_module(said).runs["body"] == 3


def test_products_and_memory_of_a_loop_count_as_often_as_it_runs():
    module = read_module(PROGRAM)
    assert product_flops(module) == 6 * 2 * 16 * 8 * 8
    # In the loop the product reads and writes 16 x 8 numbers, as its matrix is on the chip, and the
    # counter is added to and compared; outside, both fusions read 8 x 4 and write 32 x 4.
    product, counter, fusions = 2 * 16 * 8 * 4, 3 * 4 + 2 * 4 + 1, 2 * (8 * 4 + 32 * 4) * 2
    assert memory_bytes(module) == 6 * (product + counter) + fusions


def test_what_fusions_share_by_a_channel_is_one_collective():
    (found,) = collectives(read_module(PROGRAM), MESH)
    assert (found.kind, found.axes, found.runs) == ("all-gather", ("fsdp",), 1)
    assert found.bytes == 32 * 4 * 2 and found.sent == found.bytes * 3 / 4


@pytest.mark.parametrize(
    ("written", "axes"),
    [
        ("replica_groups={{0,2,4,6},{8,10,12,14},{1,3,5,7},{9,11,13,15}}", ("fsdp",)),
        ("replica_groups=[8,2]<=[16]", ("tensor",)),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", ("data",)),
        ("replica_groups=[2,8]<=[8,2]T(1,0)", ("data", "fsdp")),
        ("replica_groups=mesh['a'=8,'b'=2] {'a'}", ("data", "fsdp")),
        ("replica_groups=mesh['a'=8,'b'=2] {'a':(2)4}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a'}", ("tensor",)),
        ("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}", ("fsdp",)),
        ("no groups", ("data", "fsdp", "tensor")),
    ],
)
def test_groups_of_devices_differ_along_axes_of_the_mesh(written, axes):
    assert axes_of(replica_groups(written, 16), MESH) == axes


def test_an_array_has_the_bytes_of_its_type_and_a_place():
    matrix, flag, on_chip = arrays("(bf16[2,3]{1,0:T(8,128)(2,1)}, pred[], s8[5]{0:S(1)})")
    assert (matrix.bytes, flag.bytes, on_chip.bytes) == (12, 1, 5)
    assert matrix.in_memory and not on_chip.in_memory


def test_products_of_a_compiled_program_are_those_of_the_traced_one():
    def loss(weights, x):
        def layer(x, w):
            return jnp.tanh(jnp.einsum("bnd,de->bne", x, w)), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    shapes = jnp.ones((5, 16, 16)), jnp.ones((2, 8, 16))
    text = jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text()
    # Forward, and backward the gradients of inputs and of weights, in each of five layers.
    assert product_flops(read_module(text)) == 3 * 5 * 2 * 16 * 16 * 16
