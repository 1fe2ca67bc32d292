"""Holds the training loss of a model over a batch: the plain one, which regularizers wrap."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from lm.model.pooling import Seen
from lm.model.transformer import Batch, Transformer
from lm.training.random_streams import StepStream
from lm.training.train_state import Params


class ForwardPass(NamedTuple):
    """One pass of a model over a batch with N positions that count.

    Attributes:
      nats: its loss, summed over the positions by weight.
      weights: of the positions, [N].
      params: of the model.
      head_inputs: what its head reads; arrays [N, ...] where there are several `chunks`.
      predict: (params, head_inputs) -> log-probabilities [N, V] in nats, or values [N].
      chunks: in how many parts `predict` is to be called, so that no N x V is stored.
      metrics: what is logged beside the loss, summed as `nats` are.
    """

    nats: jax.Array
    weights: jax.Array
    params: Params
    head_inputs: jax.Array | Seen
    predict: Callable[..., jax.Array]
    chunks: int = 1
    metrics: Mapping[str, jax.Array] = MappingProxyType({})

    def stop_gradient(self) -> "ForwardPass":
        """The same without gradient."""
        params, head_inputs = jax.lax.stop_gradient((self.params, self.head_inputs))
        return self._replace(params=params, head_inputs=head_inputs)


Step = jax.Array | None  # updates made, for heads whose loss follows a schedule
# (params, batch, key, step) -> ForwardPass. A regularizer of the loss takes one and gives one: it
# may change the batch, pass more than once, and add terms to `nats`.
LossFn = Callable[..., ForwardPass]


def training_loss(model: Transformer, train: bool = True) -> LossFn:
    """The plain loss of a model, with dropout in training."""

    def apply(params: Params, *arguments: Any, **options: Any) -> Any:
        return model.apply({"params": params}, *arguments, **options)

    def loss(params: Params, batch: Batch, key: jax.Array, step: Step = None) -> ForwardPass:
        def head_loss(module: Transformer) -> tuple[jax.Array, Seen]:
            seen = module.states(batch, train)
            return module.head_loss(seen, batch, step), seen

        def predict_rows(params: Params, seen: Seen) -> jax.Array:
            found = apply(params, seen, batch, method="head_outputs")
            return found.reshape(len(weights), *found.shape[2:])

        def predict_tokens(params: Params, states: jax.Array) -> jax.Array:
            return apply(params, states, method="token_log_probs")

        rngs, weights = dropout_keys(key) if train else {}, batch.weights.reshape(-1)
        nats, (states, table) = apply(params, method=head_loss, rngs=rngs)
        head = model.output_head()
        if model.outputs.real_targets or table is not None or head.sequence_level:
            return ForwardPass(nats, weights, params, (states, table), predict_rows)
        states = states.reshape(len(weights), -1)
        chunks = head.chunks(len(weights), 2 * head.logits_per_token)
        return ForwardPass(nats, weights, params, states, predict_tokens, chunks)

    return loss


def dropout_keys(key: jax.Array) -> dict[str, jax.Array]:
    """The model's random streams in training, of the key of a step."""
    return {
        "dropout": jax.random.fold_in(key, StepStream.DROPOUT),
        "softmax": jax.random.fold_in(key, StepStream.SOFTMAX),
    }
