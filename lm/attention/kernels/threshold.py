"""The forward pass of the entmax family as one TPU kernel: the scores of a block of queries over
all keys stay in the core's memory until their threshold is found.

The grid is that of `forward`, with twice the steps: the first half computes scores, at its end
Newton's method finds each row's threshold, and the second half sums values. Blocks of keys whose
scores all lie below the threshold are left out of Newton's sweeps and of the sums.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.attention.kernels.call import (
    LAST,
    Operands,
    Output,
    Places,
    Ref,
    Setup,
    by_queries,
    call,
    core_memory,
    of_rows,
    split_rows,
)
from lm.attention.kernels.families import Family, Rows, Tile
from lm.attention.kernels.forward import Forward
from lm.attention.kernels.tiles import Tiles
from lm.softmax.entmax_threshold import (
    GROUP_SWEEPS,
    MAX_SWEEPS,
    Alpha,
    first_threshold,
    is_missing,
    newton_step,
    powers,
)
from lm.softmax.sparse import change_of

GROUP = 16  # keys of a tile whose largest score stands for all in the first sweeps
_LANES = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Threshold(Family):
    """scale relu((alpha-1) s - shift)^(1/(alpha-1)), with each row's own shift and scale."""

    saved = ("shift", "scale")

    def alpha(self, rows: Rows) -> Alpha:
        """A number, or [1, queries]."""
        assert self.weighting.entmax_alpha is not None
        return self.weighting.entmax_alpha(**self.options, **self.of_rows(rows))

    def backward(self, scores: jax.Array, visible: jax.Array, rows: Rows, grads: jax.Array) -> Tile:
        """See `Family`; "delta" is the mean of `grads` by the weights' sensitivities."""
        alpha = self.alpha(rows)
        slack = jnp.where(visible, (alpha - 1.0) * scores - rows["shift"], -jnp.inf)
        weights, sensitivity = weigh(slack, alpha, rows["scale"])
        centred = grads - rows["delta"]
        options: dict[str, jax.Array] = {}
        if isinstance(alpha, jax.Array):
            change = change_of(weights, alpha, expm1) * centred
            gradient = jax.vjp(self.alpha, self.of_rows(rows))[1]
            (options,) = gradient(jnp.sum(change, axis=0, keepdims=True))
        return Tile(weights, sensitivity * centred, options)


def weigh(slack: jax.Array, alpha: Alpha, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights p of places with such slack, in rows of such scale, and p^(2-alpha)."""
    weights, slopes = powers(slack, alpha)  # p / scale, and its power 2 - alpha
    if isinstance(alpha, float) and alpha == 2.0:
        return weights * scale, slopes
    return weights * scale, slopes * jnp.exp((2.0 - alpha) * jnp.log(scale))


def expm1(y: jax.Array) -> jax.Array:
    """e^y - 1 without jnp.expm1, which TPU kernels lack: by its series where y is small."""
    near = jnp.abs(y) < 0.25
    small, series = jnp.where(near, y, 0.0), jnp.ones_like(y)
    for term in range(8, 1, -1):
        series = 1.0 + small * series / term
    return jnp.where(near, small * series, jnp.exp(y) - 1.0)


def most_keys() -> int:
    """The longest rows that the devices in use have memory for."""
    return core_memory() // 4 // (4 * _LANES)  # a quarter for scores of 4 bytes


def threshold_queries(keys: int, size: int) -> int:
    """How many queries are computed at a time, at most `size`."""
    return max(_LANES, min(size, most_keys() * _LANES // keys // _LANES * _LANES))


def threshold_forward(
    setup: Setup, operands: Operands, bounds: tuple[jax.Array, jax.Array]
) -> Forward:
    """As `forward`, and the means of values by sensitivities, and which tiles have weight."""
    batch, heads, length, _ = operands.query.shape
    tiles, width = setup.tiles, operands.value.shape[2]
    n, m, steps = tiles.query_size, tiles.key_size, tiles.steps(of_keys=False)
    whole = by_queries(operands.share)

    def of_keys(b, h, i, step, *at):
        return whole.keys(b, h, i, jnp.minimum(step, steps - 1), *at)

    def of_values(b, h, i, step, *at):
        return whole.values(b, h, i, jnp.maximum(step - steps, 0), *at)

    mean = Output((batch, heads, width, length), operands.value.dtype, (width, n), of_rows)
    blocks = batch, heads, tiles.query_blocks
    support = None, 1, tiles.key_blocks
    contexts, saved, means, flags = call(
        _threshold_forward,
        setup,
        operands,
        bounds,
        (batch, heads, tiles.query_blocks, 2 * steps),
        Places(whole.queries, of_keys, of_values),
        [
            mean,
            Output((batch, heads, 2, length), operands.dtype, (2, n), of_rows),
            mean,
            Output(
                (*blocks, *support[1:]),
                jnp.int32,
                support,
                lambda b, h, i, *_: (b, h, i, 0, 0),
                pltpu.SMEM,
            ),
        ],
        [(steps, m, n), (steps, m // GROUP, n), (8, n), (width, n), (width, n)],
    )
    return Forward(contexts, saved, means, flags.reshape(*blocks, -1))


def _threshold_forward(setup, first_ref, last_ref, query_ref, key_ref, value_ref, rows_ref, *refs):
    family, tiles = setup.family, setup.tiles
    segment_refs, steps = refs[:-9], tiles.steps(of_keys=False)
    context_ref, saved_ref, mean_ref, support_ref = refs[-9:-5]
    scores_ref, leaders_ref, state_ref, sums_ref, sensitive_ref = refs[-5:]
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    count = last_ref[row, block] - first_ref[row, block] + 1
    rows = split_rows(family.row_names, rows_ref)
    solver = Solver(family.alpha(rows), tiles, scores_ref, leaders_ref, state_ref)

    @pl.when(step == 0)
    def _start():
        solver.start()

        @pl.loop(0, tiles.key_blocks)
        def _none(key_block):
            support_ref[0, key_block] = 0

        sums_ref[...] = jnp.zeros_like(sums_ref)
        sensitive_ref[...] = jnp.zeros_like(sensitive_ref)

    @pl.when(step < count)
    def _score():
        scores = jax.lax.dot_general(
            key_ref[...], query_ref[...], LAST, preferred_element_type=scores_ref.dtype
        )
        key_block = first_ref[row, block] + step
        visible = tiles.visible(block, key_block, *(ref[...] for ref in segment_refs))
        solver.add(step, jnp.where(visible, scores, -jnp.inf))

    @pl.when(step == steps - 1)
    def _solve():
        saved_ref[...] = jnp.concatenate(solver.solve(count))

    @pl.when((step >= steps) & (step - steps < count))
    def _sum():
        tile = step - steps
        shift, scale = saved_ref[0:1, :], saved_ref[1:2, :]

        @pl.when(solver.has_support(tile, shift))
        def _add():
            support_ref[0, first_ref[row, block] + tile] = 1
            weights, sensitivity = weigh(solver.scaled(tile) - shift, solver.alpha, scale)
            value = value_ref[...]
            for ref, each in ((sums_ref, weights), (sensitive_ref, sensitivity)):
                ref[...] += jnp.dot(
                    value, each.astype(value.dtype), preferred_element_type=ref.dtype
                )
            state_ref[_SENSITIVITY, :] += jnp.sum(sensitivity, axis=0, keepdims=True)

    @pl.when(step == 2 * steps - 1)
    def _finish():
        context_ref[...] = sums_ref[...].astype(context_ref.dtype)
        sensitivity = state_ref[_SENSITIVITY, :]
        mean = sensitive_ref[...] / jnp.where(sensitivity == 0.0, 1.0, sensitivity)
        mean_ref[...] = mean.astype(mean_ref.dtype)


# What each row carries, as places of a block [8, queries].
_TOP, _TOTAL, _SLOPE, _SENSITIVITY = (slice(i, i + 1) for i in range(4))


@dataclasses.dataclass(frozen=True)
class Solver:
    """Newton's method (`lm.softmax.entmax_threshold`) over tiles in a core's memory.

    Attributes:
      alpha: a number, or [1, queries].
      tiles: how scores are cut.
      scores: [tiles, keys, queries], minus infinity where hidden.
      leaders: [tiles, keys / 16, queries], the largest of groups of scores.
      state: [8, queries], what each row carries.
    """

    alpha: Alpha
    tiles: Tiles
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

    def scaled(self, tile: jax.Array) -> jax.Array:
        """(alpha - 1) times the scores of a tile."""
        return (self.alpha - 1.0) * self.scores[tile]

    def has_support(self, tile: jax.Array, shift: jax.Array) -> jax.Array:
        """Whether a score of a tile lies above its row's threshold."""
        slack = (self.alpha - 1.0) * self.leaders[tile] - shift
        # Powers of slack less 1 begin at -1 (see `powers`), for which the first threshold is 0.
        return jnp.max(slack) > -1.0 - first_threshold(self.alpha)

    @property
    def top(self) -> jax.Array:
        """The largest score of each row, [1, queries]; 0 where nothing is visible."""
        top = self.state[_TOP, :]
        return jnp.where(top == -jnp.inf, 0.0, top)

    def solve(self, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Each row's shift and scale, [1, queries], of so many tiles."""
        base = (self.alpha - 1.0) * self.top
        tau = jnp.full_like(base, first_threshold(self.alpha))

        def lead(_, tau):
            return self._sweep(self.leaders, count, base, tau)[0]

        tau = jax.lax.fori_loop(0, GROUP_SWEEPS, lead, tau)

        def unfinished(carry):
            sweeps, _, move, _ = carry
            return (sweeps < MAX_SWEEPS) & (
                jnp.max(is_missing(move, self.tiles.keys, self.alpha).astype(jnp.int32)) > 0
            )

        def again(carry):
            return carry[0] + 1, *self._sweep(self.scores, count, base, carry[1])

        first = (1, *self._sweep(self.scores, count, base, tau))
        _, tau, _, total = jax.lax.while_loop(unfinished, again, first)
        return base + tau, 1.0 / jnp.where(total == 0.0, 1.0, total)

    def _sweep(self, values, count, base, tau) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Newton's step over all tiles of `values`, scores or leaders."""
        shift = base + tau
        self.state[_TOTAL, :] = jnp.zeros_like(tau)
        self.state[_SLOPE, :] = jnp.zeros_like(tau)

        @pl.loop(0, count)
        def _tile(tile):
            @pl.when(self.has_support(tile, shift))
            def _add():
                slack = (self.alpha - 1.0) * values[tile] - shift
                weights, slopes = powers(slack, self.alpha)
                self.state[_TOTAL, :] += jnp.sum(weights, axis=0, keepdims=True)
                self.state[_SLOPE, :] += jnp.sum(slopes, axis=0, keepdims=True)

        sums = self.state[_TOTAL, :], self.state[_SLOPE, :]
        return newton_step(tau, *sums, self.alpha, expm1)
