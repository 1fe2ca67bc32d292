"""Prunes kernels while they are trained: an optax transformation that sets the elements of lowest
score to exactly 0, more and more of them by a schedule.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.config import Key

_STAGES = 100  # into which the time of pruning is divided; at the end of each, kernels are sorted


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """The share that is pruned after t updates: S (1 - (1 - (t - a) / (b - a))^3), a <= t <= b.

    0 before a and S after b: fast at first, while there is much to spare (Zhu and Gupta,
    1710.01878).

    Attributes:
      final: S, above 0, below 1.
      start, end: a and b, in updates, of which the keys are shares; a is below b.
    """

    final: Annotated[float, Key("regularization.sparsity", at_least=0, below=1)]
    start: Annotated[int, Key("regularization.pruning_start", at_least=0, below=1)]
    end: Annotated[int, Key("regularization.pruning_end", above=0, at_most=1)]

    def __call__(self, count: jax.Array) -> jax.Array:
        """The share after so many updates, a scalar."""
        left = 1.0 - (count - self.start) / (self.end - self.start)
        return self.final * (1.0 - jnp.clip(left, 0.0, 1.0) ** 3)

    def due(self, count: jax.Array) -> jax.Array:
        """Whether that many updates end one of a hundred stages from a to b."""
        every = -(-(self.end - self.start) // _STAGES)
        within = (count >= self.start) & (count <= self.end)
        return within & (((self.end - count) % every) == 0)


class Pruned(NamedTuple):
    """What pruning remembers, of kernels alone.

    Attributes:
      num_updates: updates made.
      mask: where weights are kept.
      dense: weights, with what the pruned ones were.
      scores: their worth.
      inner: the state of the transformation within.
    """

    num_updates: jax.Array
    mask: Mapping[str, Any]
    dense: Mapping[str, Any]
    scores: Mapping[str, Any]
    inner: optax.OptState


def pruning(
    tx: optax.GradientTransformation, sparsity: Sparsity, score: Callable[..., Any]
) -> optax.GradientTransformation:
    """Applies `tx`, and keeps all but the elements of the highest scores of each kernel at 0.

    Of n elements round(sparsity n) are 0, the first of equals, counted anew at every stage of the
    schedule up to its end. What is pruned does not learn; its last value is remembered, and should
    its score rise while the schedule lasts, it is back. Stacked layers are kernels of their own.

    Args:
      tx: makes updates of gradients.
      sparsity: by updates.
      score: one of `SCORES`.
    """

    def init(params: optax.Params) -> Pruned:
        kernels = _kernels(params)
        mask = {path: jnp.ones(w.shape, bool) for path, w in kernels.items()}
        dense = {path: jnp.copy(w) for path, w in kernels.items()}
        scores = {path: jnp.zeros_like(w) for path, w in kernels.items()}
        trees = map(unflatten_dict, (mask, dense, scores))
        return Pruned(jnp.zeros((), jnp.int32), *trees, inner=tx.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[Any, Pruned]:
        count, slopes, weights = state.num_updates + 1, _kernels(updates), _kernels(params)
        mask, dense, scores = map(_kernels, (state.mask, state.dense, state.scores))
        learning = {path: jnp.where(mask[path], g, 0) for path, g in slopes.items()}
        updates, inner = tx.update(_with(updates, learning), state.inner, params)
        steps = _kernels(updates)
        # What is kept is as it is among the parameters, which may have been rounded.
        before = {path: jnp.where(mask[path], weights[path], w) for path, w in dense.items()}
        dense = {path: w + jnp.where(mask[path], steps[path], 0) for path, w in before.items()}
        scores = {
            path: score(scores[path], before[path], slopes[path], w) for path, w in dense.items()
        }
        share, due = sparsity(count), sparsity.due(count)
        kept = jax.lax.cond(
            due, lambda: {path: _kept(path, s, share) for path, s in scores.items()}, lambda: mask
        )
        moves = {
            path: jnp.where(kept[path], jnp.where(mask[path], steps[path], dense[path]), -w)
            for path, w in weights.items()
        }
        trees = map(unflatten_dict, (kept, dense, scores))
        return _with(updates, moves), Pruned(count, *trees, inner=inner)

    return optax.GradientTransformation(init, update)


def pruned_share(params: optax.Params) -> jax.Array:
    """The share of the kernels' elements that are 0, a scalar."""
    kernels = _kernels(params).values()
    zeros = jnp.stack([jnp.sum(w == 0, dtype=jnp.float32) for w in kernels])
    return jnp.sum(zeros) / sum(w.size for w in kernels)


def _magnitude(score: jax.Array, weight: jax.Array, slope: jax.Array, new: jax.Array) -> jax.Array:
    """|w|."""
    return jnp.abs(new)


def _movement(score: jax.Array, weight: jax.Array, slope: jax.Array, new: jax.Array) -> jax.Array:
    """The sum over updates of -w dL/dw: above 0 where w moves away from 0 (2005.07683)."""
    return score - weight * slope


def _kept(path: tuple[str, ...], scores: jax.Array, share: jax.Array) -> jax.Array:
    """All but the round(share n) lowest of n scores, the first of equals; layer by layer."""
    if path[1] == "layers":
        return jax.vmap(lambda s: _kept(("", ""), s, share))(scores)
    flat = scores.reshape(-1)
    number = jnp.round(share * flat.size).astype(jnp.int32)
    bound = jnp.sort(flat)[jnp.maximum(number - 1, 0)]
    below, equal = flat < bound, flat == bound
    room = number - jnp.sum(below)
    lost = below | (equal & (jnp.cumsum(equal) <= room))
    return ~lost.reshape(scores.shape)


def _kernels(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves that are named kernel, by path."""
    flat: Any = flatten_dict(tree)
    return {path: leaf for path, leaf in flat.items() if path[-1] == "kernel"}


def _with(tree: Any, leaves: dict[tuple[str, ...], Any]) -> Any:
    """The tree with some leaves replaced."""
    flat: Any = flatten_dict(tree)
    return unflatten_dict(flat | leaves)


# (score before, weight before, slope of the loss at what is left of that, weight after) -> score
SCORES: dict[str, Callable[..., jax.Array]] = {"magnitude": _magnitude, "movement": _movement}
