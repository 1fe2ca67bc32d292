"""What the text of a compiled program says: loops, products, memory traffic and collectives."""

import jax
import jax.numpy as jnp
import pytest

from lm.experiment.plan.collectives import axes_of, collectives, replica_groups
from lm.experiment.plan.hlo import arrays, read_module
from lm.experiment.plan.traffic import memory_bytes, product_flops, seconds_in_order

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

# What a TPU's compiler makes of an all-gather during which a loop of 6 rounds is computed.
EXCHANGE = """HloModule exchange

%start (p: bf16[8,4]) -> BOTH {
  %p = bf16[8,4] parameter(0)
  %all-gather.1 = bf16[32,4] all-gather(%p), SHARED
  ROOT %begun = BOTH custom-call(%all-gather.1), TARGET="AsyncCollectiveStart"
}

%async_collective_fusion.1 (q: bf16[8,4], r: bf16[32,4], s: f32[16]) -> ROUND {
  %q = bf16[8,4] parameter(0)
  %r = bf16[32,4] parameter(1)
  %s = f32[16] parameter(2)
  %t = f32[16] negate(%s)
  %all-gather.2 = bf16[32,4] all-gather(%q), SHARED
  ROOT %tuple = ROUND tuple(%t, %q, %all-gather.2)
}

%end (u: bf16[8,4], v: bf16[32,4]) -> bf16[32,4] {
  %u = bf16[8,4] parameter(0)
  %v = bf16[32,4] parameter(1)
  %all-gather.3 = bf16[32,4] all-gather(%u), SHARED
  ROOT %ended = bf16[32,4] custom-call(%u, %v, %all-gather.3), TARGET="AsyncCollectiveDone"
}

%body (b: CARRIED) -> CARRIED {
  %b = CARRIED parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[16] get-tuple-element(%b), index=1
  %own = bf16[8,4] get-tuple-element(%b), index=2
  %all = bf16[32,4] get-tuple-element(%b), index=3
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %on = ROUND fusion(%own, %all, %x), kind=kOutput, calls=%async_collective_fusion.1
  %x2 = f32[16] get-tuple-element(%on), index=0
  %own2 = bf16[8,4] get-tuple-element(%on), index=1
  %all2 = bf16[32,4] get-tuple-element(%on), index=2
  ROOT %out = CARRIED tuple(%next, %x2, %own2, %all2)
}

%condition (c: CARRIED) -> pred[] {
  %c = CARRIED parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: bf16[8,4], d: f32[16]) -> bf16[32,4] {
  %a = bf16[8,4] parameter(0)
  %d = f32[16] parameter(1)
  %first = BOTH fusion(%a), kind=kCustom, calls=%start
  %own0 = bf16[8,4] get-tuple-element(%first), index=0
  %all0 = bf16[32,4] get-tuple-element(%first), index=1
  %zero = s32[] constant(0)
  %begin = CARRIED tuple(%zero, %d, %own0, %all0)
  %loop = CARRIED while(%begin), condition=%condition, body=%body
  %own1 = bf16[8,4] get-tuple-element(%loop), index=2
  %all1 = bf16[32,4] get-tuple-element(%loop), index=3
  ROOT %result = bf16[32,4] fusion(%own1, %all1), kind=kCustom, calls=%end
}
"""
for _short, _whole in {
    "SHARED": "channel_id=7, replica_groups=[4,4]<=[8,2]T(1,0), dimensions={0}",
    "TARGET": "custom_call_target",
    "CARRIED": "(s32[], f32[16], bf16[8,4], bf16[32,4])",
    "ROUND": "(f32[16], bf16[8,4], bf16[32,4])",
    "BOTH": "(bf16[8,4], bf16[32,4])",
}.items():
    EXCHANGE = EXCHANGE.replace(_short, _whole)


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
    # At 1 FLOP/s and 1 byte/s the product is bound by arithmetic, all else by memory.
    assert seconds_in_order(module, 1.0, 1.0) == 6 * (2 * 16 * 8 * 8 + counter) + fusions


def test_what_fusions_share_by_a_channel_is_one_collective():
    (found,) = collectives(read_module(PROGRAM), MESH)
    assert (found.kind, found.axes, found.runs) == ("all-gather", ("fsdp",), 1)
    assert found.bytes == 32 * 4 * 2 and found.sent == found.bytes * 3 / 4


def test_an_exchange_that_goes_on_in_a_loop_counts_where_it_starts():
    module = read_module(EXCHANGE)
    (found,) = collectives(module, MESH)
    assert module.runs["async_collective_fusion.1"] == 6 and found.runs == 1
    # The exchange reads 8 x 4 numbers and writes 32 x 4; each round of the loop has 16 of its own,
    # and its counter is read and written, and compared.
    assert memory_bytes(module) == (8 * 4 + 32 * 4) * 2 + 6 * (2 * 16 * 4 + 2 * 4 + 4 + 2 * 4 + 1)


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
