"""The gradients of hidden states, table and bias as one TPU kernel, which computes every tile of
logits once more.

The grid is (core, block of tokens, block of the core's part of the vocabulary). The gradient of the
hidden states is summed in place over the vocabulary; that of a tile's rows of the table lies in the
main memory, is fetched, added to, and written back while the next tile's logits are computed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.devices.tpu_core import CONTRACT_FIRST, LANES, run_kernel
from lm.output.kernels.forward import Operands, specs, tile_logits
from lm.output.kernels.tiles import Setup


class RowGrads(NamedTuple):
    """What the gradient of a row of logits follows from, [1, N] each.

    The gradient of f(z_v) is scale e^(f(z_v) - shift) for all but the target, whose it is `target`;
    and `mean`, and -entropy p_v (log p_v + entropy_value), log p_v = f(z_v) - lse, are added.
    """

    shift: jax.Array
    scale: jax.Array
    target: jax.Array
    mean: jax.Array
    entropy: jax.Array
    entropy_value: jax.Array
    lse: jax.Array


class Gradients(NamedTuple):
    """In the dtype of sums.

    Attributes:
      hidden: [N, D].
      table: [V, D].
      bias: [V], or None.
    """

    hidden: jax.Array
    table: jax.Array
    bias: jax.Array | None


def gradients(setup: Setup, operands: Operands, row_grads: RowGrads) -> Gradients:
    """Those of arrays that fill whole tiles."""
    tiles, dtype = setup.tiles, operands.dtype
    rows, features = operands.hidden.shape
    vocab = operands.table.shape[0]
    cores = tiles.cores
    n, v, steps = tiles.token_tile, tiles.vocab_tile, tiles.vocab_blocks // cores

    def token_block(core, i, j):
        return i

    def vocab_block(core, i, j):
        return core * steps + j

    shapes: list[tuple[tuple[int, ...], pl.BlockSpec]] = [
        ((cores, rows, features), pl.BlockSpec((None, n, features), lambda c, i, j: (c, i, 0))),
        ((vocab, features), pl.BlockSpec(memory_space=pl.ANY)),
    ]
    if operands.bias is not None:
        place = pl.BlockSpec((None, 1, v), lambda c, i, j: (i, 0, vocab_block(c, i, j)))
        shapes.append(((tiles.token_blocks, 1, vocab), place))
    stacked = jnp.concatenate(row_grads)
    of_rows = pl.BlockSpec((len(stacked), n), lambda c, i, j: (0, i))
    found = run_kernel(
        functools.partial(_backward, setup),
        (stacked, operands),
        (of_rows, specs(setup, operands, token_block, vocab_block)),
        name="head_backward",
        grid=(cores, tiles.token_blocks, steps),
        outputs=[(jax.ShapeDtypeStruct(shape, dtype), spec) for shape, spec in shapes],
        scratch=[
            pltpu.VMEM((2, v, features), dtype),
            pltpu.SemaphoreType.DMA,
            pltpu.SemaphoreType.DMA((2,)),
        ],
        in_order=2,
        interpret=setup.interpret,
    )
    bias = jnp.sum(found[2], axis=(0, 1)) if operands.bias is not None else None
    return Gradients(jnp.sum(found[0], axis=0), found[1], bias)


def _backward(setup, inputs, hidden_grad_ref, table_grad_ref, *refs):
    rows_ref, operands = inputs
    *bias_grad_refs, sums_ref, fetched_signal, written_signal = refs
    core, tokens, step = (pl.program_id(axis) for axis in range(3))
    steps, size = pl.num_programs(2), setup.tiles.vocab_tile
    block, serial = core * steps + step, tokens * steps + step
    slot = serial % 2
    sum_ref, place = sums_ref.at[slot], table_grad_ref.at[pl.ds(block * size, size), :]
    fetched = pltpu.make_async_copy(place, sum_ref, fetched_signal)

    def written(slot):
        return pltpu.make_async_copy(sums_ref.at[slot], place, written_signal.at[slot])

    @pl.when(serial >= 2)
    def _free():
        written(slot).wait()

    @pl.when(tokens > 0)
    def _fetch():
        fetched.start()

    rows = RowGrads(*(rows_ref[at : at + 1, :] for at in range(len(RowGrads._fields))))
    z = tile_logits(operands)
    grad = _logit_grads(setup, block, z, operands.targets[...], rows)
    for bias_grad_ref in bias_grad_refs:
        lanes = grad.reshape(size, -1, LANES).sum(1)
        bias_grad_ref[...] = jnp.sum(lanes.T, axis=0, keepdims=True)
    table, dtype = operands.table[...], sums_ref.dtype
    grad = grad.astype(table.dtype)
    hidden_grad = jax.lax.dot_general(grad, table, CONTRACT_FIRST, preferred_element_type=dtype)

    @pl.when(step == 0)
    def _start():
        hidden_grad_ref[...] = hidden_grad

    @pl.when(step > 0)
    def _add():
        hidden_grad_ref[...] += hidden_grad

    table_grad = jnp.dot(grad, operands.hidden[...], preferred_element_type=dtype)

    @pl.when(tokens == 0)
    def _first():
        sum_ref[...] = table_grad

    @pl.when(tokens > 0)
    def _fetched():
        fetched.wait()
        sum_ref[...] += table_grad

    written(slot).start()

    @pl.when(serial == pl.num_programs(1) * steps - 1)
    def _finish():
        written(1 - slot).wait()
        written(slot).wait()


def _logit_grads(setup, block, z, targets, rows: RowGrads) -> jax.Array:
    """Of the logits before the transform, [vocab_tile, token_tile]."""
    transform, tiles = setup.transform, setup.tiles
    exponentials = transform.exponential(z, rows.shift)
    grad = jnp.where(tiles.is_target(block, targets), rows.target, exponentials * rows.scale)
    if setup.mean:
        grad += rows.mean
    if setup.entropy:
        log_p = transform.value(z) - rows.lse
        grad -= rows.entropy * jnp.exp(log_p) * (log_p + rows.entropy_value)
    grad *= transform.derivative(z)
    padding = tiles.is_padding(block, z.shape[1])
    return grad if padding is None else jnp.where(padding, 0.0, grad)
