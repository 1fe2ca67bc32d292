"""Trains on adversarial token embeddings: vectors added to them climb the gradient of a loss, and
stay within a radius.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.linen.module import InterceptorContext as Context

from lm.model.embedding import Embedding
from lm.model.transformer import Batch, Transformer
from lm.training.loss import ForwardPass, LossFn, Step
from lm.training.mixed_precision import accumulate, in_float32
from lm.training.random_streams import StepStream
from lm.training.regularization.divergence import symmetric_kl, total_divergence
from lm.training.train_state import Params

Moves = dict[str, jax.Array]  # [B, L, E] for each module that embeds words, by its name


@dataclasses.dataclass(frozen=True)
class Moved:
    """Adds vectors to those of the words; an interceptor of `flax.linen`.

    Attributes:
      moves: what is added.
    """

    moves: Moves

    def __call__(self, call: Callable, args: tuple, kwargs: dict, context: Context) -> Any:
        """Watches what is embedded."""
        if not isinstance(context.module, Embedding) or context.method_name != "__call__":
            return call(*args, **kwargs)
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        own = self.moves[context.module.name or ""]
        given["words"] = given["words"] + own.astype(given["words"].dtype)
        return call(**given)


def drawn(model: Transformer, batch: Batch, radius: float, key: jax.Array) -> Moves:
    """Moves drawn evenly, of about 0.6 of the radius in each row; 0 at padding.

    Each number is from -r / sqrt(n) to r / sqrt(n), n of them in a row that are not padding.
    """
    real = {"inputs": batch.segments.reshape(-1, batch.segments.shape[-1]) > 0}
    if batch.encoder_segments is not None:
        real["encoder_inputs"] = batch.encoder_segments > 0
    size = model.config.embedding.embedding_dim
    moves = {}
    for number, (name, where) in enumerate(real.items()):
        one = jax.random.fold_in(key, number)
        draw = jax.random.uniform(one, (*where.shape, size), minval=-1.0, maxval=1.0)
        count = jnp.maximum(jnp.sum(where, axis=1) * size, 1)[:, None, None]
        moves[name] = jnp.where(where[..., None], draw * radius / jnp.sqrt(count), 0.0)
    return moves


def uphill(moves: Moves, slopes: Moves, radius: float) -> Moves:
    """P(d + r g / |g|): a step of the radius along the slope, put back onto the radius.

    |.| is the root of the sum of squares over a row's words; P(d) = d min(1, r / |d|). A row whose
    slope is 0 stays.
    """

    def one(move: jax.Array, slope: jax.Array) -> jax.Array:
        moved = move + radius * slope / jnp.maximum(_length(slope), 1e-30)
        return moved * jnp.minimum(1.0, radius / jnp.maximum(_length(moved), 1e-30))

    return jax.tree.map(one, moves, slopes)


def _length(rows: jax.Array) -> jax.Array:
    """[B, L, E] -> [B, 1, 1]."""
    return jnp.sqrt(jnp.sum(jnp.square(rows), axis=(1, 2), keepdims=True))


def freelb(loss: Callable[..., Any], model: Transformer, steps: int, radius: float) -> Any:
    """The value and gradient of 1/K sum_k L(x + d_k), where d_k+1 is uphill of d_k and d_1 drawn.

    FreeLB (1909.11764): the slope of each d_k comes with the gradient of the parameters, so that K
    steps cost K passes. Dropout is the same in all.

    Args:
      loss: (params, batch, key, step) -> (sum of nats, sum of weights).
      model: whose words are moved.
      steps: K, at least 1.
      radius: of the moves of a row.

    Returns:
      A function with the arguments of `loss` that gives ((sum of nats, sum of weights), gradient).
    """

    def value_and_grad(params: Params, batch: Batch, key: jax.Array, step: jax.Array) -> Any:
        def moved(params: Params, moves: Moves) -> Any:
            with nn.intercept_methods(Moved(moves)):
                return loss(params, batch, key, step)

        def ascend(carry: Any, _: None) -> Any:
            moves, total = carry
            find = jax.value_and_grad(moved, argnums=(0, 1), has_aux=True)
            values, (grads, slopes) = find(params, moves)
            total = accumulate(total, (values, grads), 1.0 / steps)
            return (uphill(moves, slopes, radius), total), None

        moves = drawn(model, batch, radius, jax.random.fold_in(key, StepStream.FREELB))
        sums = optax.tree.zeros_like(jax.eval_shape(loss, params, batch, key, step))
        start = (sums, optax.tree.zeros_like(in_float32(params)))
        (_, total), _ = jax.lax.scan(ascend, (moves, start), None, length=steps)
        return total

    return value_and_grad


def smart(plain_loss: LossFn, model: Transformer, coefficient: float, radius: float) -> LossFn:
    """L(x) + s max_d (KL(p(x) || p(x + d)) + KL(p(x + d) || p(x))), |d| <= r in every row.

    The smoothness-inducing regularizer of SMART (1911.03437); the maximum is sought by one step
    from a hundredth of the radius. Dropout is the same in all passes.

    Args:
      plain_loss: L.
      model: whose words are moved.
      coefficient: s, above 0; 1 to 10 in the paper.
      radius: r.
    """

    def smoothed(params: Params, batch: Batch, key: jax.Array, step: Step = None) -> ForwardPass:
        plain = plain_loss(params, batch, key, step)

        def distance(moves: Moves, plain: ForwardPass) -> jax.Array:
            with nn.intercept_methods(Moved(moves)):
                other = plain_loss(plain.params, batch, key, step)
            return total_divergence(symmetric_kl, plain, other)

        start = drawn(model, batch, radius / 100, jax.random.fold_in(key, StepStream.SMART))
        moves = uphill(start, jax.grad(distance)(start, plain.stop_gradient()), radius)
        return plain._replace(nats=plain.nats + coefficient * distance(moves, plain))

    return smoothed
