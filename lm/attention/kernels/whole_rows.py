"""The forward pass of weightings that need all scores of a row at once, as one TPU kernel: those of
a block of queries over all keys stay in the core's memory.

The grid is that of `forward`, with twice the steps: the first half computes scores, at its end a
solver finds what all weights of a row depend on, such as a threshold, and the second half sums
values. Blocks of keys without weight are left out of the sums.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.attention.kernels.call import (
    Operands,
    Output,
    Places,
    Setup,
    by_queries,
    call,
    of_rows,
    segments_of,
    split_rows,
)
from lm.attention.kernels.families import Family, Rows, Tile
from lm.attention.kernels.forward import Forward
from lm.devices.tpu_core import CONTRACT_LAST, LANES, Ref, core_memory

GROUP = 16  # keys of a tile whose largest score is their leader
# What each row carries, as places of a block [8, queries].
_TOP, _SENSITIVITY = slice(0, 1), slice(1, 2)
# Keys of which so many scores, and what becomes of them, stay in a core's registers.
_PART = 32
SUBLANES = 8

Carry = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a block of queries, in a core's memory.

    Attributes:
      scores: [tiles, keys, queries], minus infinity where hidden.
      leaders: [tiles, keys / 16, queries], the largest of groups of scores.
      state: [8, queries], what each row carries.
    """

    scores: Ref
    leaders: Ref
    state: Ref

    def start(self) -> None:
        """Before any score."""
        self.state[...] = jnp.zeros_like(self.state)
        self.state[_TOP, :] = jnp.full_like(self.state[_TOP, :], -jnp.inf)

    def add(self, tile: jax.Array, scores: jax.Array) -> None:
        """Keeps the scores of a tile."""
        self.scores[tile] = scores
        grouped = scores.reshape(GROUP, -1, scores.shape[1])
        leaders = jnp.max(grouped, axis=0)
        self.leaders[tile] = leaders
        top = jnp.maximum(self.state[_TOP, :], jnp.max(leaders, axis=0, keepdims=True))
        self.state[_TOP, :] = top

    def fold(
        self,
        values: Ref,
        count: jax.Array,
        start: Carry,
        add: Callable[[Carry, jax.Array, jax.Array], Carry],
        is_needed: Callable[[jax.Array], jax.Array] | None = None,
    ) -> Carry:
        """Folds all scores, or leaders, a part at a time that fits in a core's registers.

        Args:
          values: `scores` or `leaders`.
          count: of tiles.
          start: a carry.
          add: `add(carry, part, place)` gives the next; a part is [32, queries], its first key
            `place` after the first of all.
          is_needed: whether a tile with these leaders is not left out.
        """
        _, keys, _ = values.shape
        size = min(_PART, keys)

        def add_tile(tile: jax.Array, carry: Carry) -> Carry:
            def add_part(part, carry):
                at = part * size
                return add(carry, values[tile, pl.ds(at, size), :], tile * keys + at)

            def add_parts(carry):
                return jax.lax.fori_loop(0, keys // size, add_part, carry, unroll=True)

            if is_needed is None:
                return add_parts(carry)
            return jax.lax.cond(
                is_needed(self.leaders[tile]), add_parts, lambda carry: carry, carry
            )

        return jax.lax.fori_loop(0, count, add_tile, start)

    @property
    def top(self) -> jax.Array:
        """The largest score of each row, [1, queries]; 0 where nothing is visible."""
        top = self.state[_TOP, :]
        return jnp.where(top == -jnp.inf, 0.0, top)


def by_sublanes(part: jax.Array, reduce: Callable[..., jax.Array] = jnp.sum) -> jax.Array:
    """Reduces the keys of a part to eight, [8, queries]."""
    return reduce(part.reshape(-1, SUBLANES, part.shape[1]), axis=0)


class WholeRows(Family):
    """A weighting that needs all scores of a row at once."""

    # Whether the gradient of scores has other factors than the weights.
    has_sensitivity: ClassVar[bool] = True

    def solve(
        self, found: Scores, count: jax.Array, rows: Rows, first_key: jax.Array
    ) -> list[jax.Array]:
        """What is saved of each row, [1, queries].

        Args:
          found: the scores.
          count: how many tiles they fill.
          rows: what is known of each row.
          first_key: of the first tile.
        """
        raise NotImplementedError

    def has_weight(self, leaders: jax.Array, rows: Rows) -> jax.Array:
        """Whether a tile with these leaders has weight; rows bring what is saved."""
        raise NotImplementedError

    def weigh(
        self, scores: jax.Array, rows: Rows, first_key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Weights and their sensitivities, of scores that are minus infinity where hidden; rows
        bring what is saved.
        """
        raise NotImplementedError

    def backward(self, scores, visible, rows, grads, first_key) -> Tile:
        """See `Family`; "delta" is the mean of `grads` by the weights' sensitivities."""
        scores = jnp.where(visible, scores, -jnp.inf)
        weights, sensitivity = self.weigh(scores, rows, first_key)
        centred = grads - rows["delta"]
        return Tile(weights, sensitivity * centred, self.option_gradients(weights, centred, rows))

    def option_gradients(
        self, weights: jax.Array, centred: jax.Array, rows: Rows
    ) -> dict[str, jax.Array]:
        """Those of `names`, of a tile."""
        del weights, centred, rows
        return {}


def most_keys() -> int:
    """The longest rows that the devices in use have memory for."""
    return core_memory() // 2 // (4 * LANES)  # half for scores of 4 bytes


def whole_row_queries(keys: int, size: int) -> int:
    """How many queries are computed at a time, at most `size`."""
    return max(LANES, min(size, most_keys() * LANES // keys // LANES * LANES))


def whole_row_forward(
    setup: Setup, operands: Operands, bounds: tuple[jax.Array, jax.Array]
) -> Forward:
    """As `forward`, with the means of values by sensitivities and the tiles that have weight."""
    assert isinstance(setup.family, WholeRows)
    batch, heads, length, _ = operands.query.shape
    tiles, width = setup.tiles, operands.value.shape[2]
    n, m, steps = tiles.query_size, tiles.key_size, tiles.steps(of_keys=False)
    blocks, saved = (batch, heads, tiles.query_blocks), len(setup.family.saved)
    means = 1 + setup.family.has_sensitivity
    places = by_queries(operands.share)

    def of_keys(b, h, i, step, *at):
        return places.keys(b, h, i, jnp.minimum(step, steps - 1), *at)

    def of_values(b, h, i, step, *at):
        return places.values(b, h, i, jnp.maximum(step - steps, 0), *at)

    def of_block(b, h, i, *_):
        return b, h, i, 0, 0

    one = 1, tiles.key_blocks
    support, rows, *contexts = call(
        _whole_row_forward,
        setup,
        operands,
        bounds,
        (*blocks, 2 * steps),
        Places(places.queries, of_keys, of_values),
        [
            Output((*blocks, *one), jnp.int32, (None, *one), of_block, pltpu.SMEM),
            Output((batch, heads, saved, length), operands.dtype, (saved, n), of_rows),
            *[Output((batch, heads, width, length), operands.value.dtype, (width, n), of_rows)]
            * means,
        ],
        [(steps, m, n), (steps, m // GROUP, n), (8, n), *[(width, n)] * means],
    )
    return Forward(contexts[0], rows, contexts[-1], support.reshape(*blocks, -1))


def _whole_row_forward(setup, first_ref, last_ref, operands, support_ref, saved_ref, *refs):
    family, tiles = setup.family, setup.tiles
    means = 1 + family.has_sensitivity
    context_refs, found, sum_refs = refs[:means], Scores(*refs[means:-means]), refs[-means:]
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    first, steps = first_ref[row, block], tiles.steps(of_keys=False)
    count = last_ref[row, block] - first + 1
    rows = split_rows(family.row_names, operands.rows)

    @pl.when(step == 0)
    def _start():
        found.start()
        for ref in sum_refs:
            ref[...] = jnp.zeros_like(ref)

        @pl.loop(0, tiles.key_blocks)
        def _none(key_block):
            support_ref[0, key_block] = 0

    @pl.when(step < count)
    def _score():
        scores = jax.lax.dot_general(
            operands.key[...],
            operands.query[...],
            CONTRACT_LAST,
            preferred_element_type=found.scores.dtype,
        )
        visible = tiles.visible(block, first + step, *segments_of(operands))
        found.add(step, jnp.where(visible, scores, -jnp.inf))

    @pl.when(step == steps - 1)
    def _solve():
        saved_ref[...] = jnp.concatenate(family.solve(found, count, rows, first * tiles.key_size))

    @pl.when((step >= steps) & (step - steps < count))
    def _sum():
        tile = step - steps
        known = {**rows, **split_rows(family.saved, saved_ref)}

        @pl.when(family.has_weight(found.leaders[tile], known))
        def _add():
            key_block, value = first + tile, operands.value[...]
            support_ref[0, key_block] = 1
            weighed = family.weigh(found.scores[tile], known, key_block * tiles.key_size)
            for ref, each in zip(sum_refs, weighed, strict=False):
                ref[...] += jnp.dot(
                    value, each.astype(value.dtype), preferred_element_type=ref.dtype
                )
            if family.has_sensitivity:
                found.state[_SENSITIVITY, :] += jnp.sum(weighed[1], axis=0, keepdims=True)

    @pl.when(step == 2 * steps - 1)
    def _finish():
        total = found.state[_SENSITIVITY, :]
        shares = 1.0, 1.0 / jnp.where(total == 0.0, 1.0, total)
        for ref, sums, share in zip(context_refs, sum_refs, shares, strict=False):
            ref[...] = (sums[...] * share).astype(ref.dtype)
