"""Mixes the hidden states of two rows, and their losses in the same proportion (mixup)."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext as Context

from lm.attention import Mask
from lm.model.layers import Block, Stack
from lm.model.pooling import AllPositions
from lm.model.transformer import Batch
from lm.training.loss import ForwardPass, LossFn, Step
from lm.training.random_streams import StepStream
from lm.training.train_state import Params


@dataclasses.dataclass(frozen=True)
class Mixed:
    """l h + (1 - l) h', h' of another row, in front of a block or of the head; an interceptor of
    `flax.linen`.

    In front of a block a row keeps its length, and padding of the other adds nothing.

    Attributes:
      share: l, a scalar.
      other: for each row the number of the other, [B].
      layer: how many blocks come before.
      last: the number of blocks, in front of the head.
    """

    share: jax.Array
    other: jax.Array
    layer: int
    last: int

    def __call__(self, call: Callable, args: tuple, kwargs: dict, context: Context) -> Any:
        """Watches the stack, its blocks and the readout."""
        module = context.module
        if context.method_name != "__call__" or not isinstance(
            module, (Stack, Block, AllPositions)
        ):
            return call(*args, **kwargs)
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        if isinstance(module, AllPositions):
            # A readout counts a row's texts by its targets, of which half are the other's.
            targets = given["batch"].targets
            own = given["batch"].replace(targets=targets[:, : targets.shape[1] // 2])
            states, table = call(given["hidden"], own)
            states = self.of(states, states[self.other]) if self.layer == self.last else states
            # One for the row's own target, and one for the other's.
            return jnp.concatenate([states, states], axis=1), table
        name = f"layer_{self.layer}" if self.layer else "stack"
        if module.name != name or self.layer == self.last:
            return call(*args, **kwargs)
        mask: Mask = given["mask"]
        assert mask.segments is not None
        real = (mask.segments > 0)[:, :, None]
        given["x"] = self.of(given["x"], jnp.where(real, given["x"], 0)[self.other])
        return call(**given)

    def of(self, own: jax.Array, others: jax.Array) -> jax.Array:
        """The mixture, in the dtype of the states."""
        return (self.share * own + (1.0 - self.share) * others).astype(own.dtype)


def mixup(plain_loss: LossFn, alpha: float, layer: int, last: int) -> LossFn:
    """Of a row and another of the batch, l L(h, y) + (1 - l) L(h, y') at h = l h + (1 - l) h'.

    The share l is drawn for each batch from Beta(a, a) (mixup, 1710.09412), the other rows are a
    permutation of the batch. Hidden states are mixed in front of a block (manifold mixup,
    1806.05236; MixText, 2004.12239) or, behind the last one, those that the head sees.

    Args:
      plain_loss: the loss of a mixture, which may pass over it more than once.
      alpha: a, above 0; small leaves one row of each pair almost as it is.
      layer: blocks before the mixture.
      last: blocks of the model.
    """

    def mixed_loss(params: Params, batch: Batch, key: jax.Array, step: Step = None) -> ForwardPass:
        draw = jax.random.fold_in(key, StepStream.MIXUP)
        share = jax.random.beta(jax.random.fold_in(draw, 0), alpha, alpha)
        other = jax.random.permutation(jax.random.fold_in(draw, 1), len(batch.targets))
        return mixture(plain_loss, share, other, layer, last)(params, batch, key, step)

    return mixed_loss


def mixture(
    plain_loss: LossFn, share: jax.Array, other: jax.Array, layer: int, last: int
) -> LossFn:
    """The loss of rows mixed with these others, [B], in this share; see `mixup`."""

    def loss(params: Params, batch: Batch, key: jax.Array, step: Step = None) -> ForwardPass:
        weights = [share * batch.weights, (1.0 - share) * batch.weights[other]]
        both = dataclasses.replace(
            batch,
            targets=jnp.concatenate([batch.targets, batch.targets[other]], axis=1),
            weights=jnp.concatenate(weights, axis=1),
        )
        with nn.intercept_methods(Mixed(share, other, layer, last)):
            return plain_loss(params, both, key, step)

    return loss
