"""Holds the training loss of a model over a batch: the plain one, which regularizers wrap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lm.model.transformer import Batch, Transformer
from lm.training.random_streams import StepStream


class ForwardPass(NamedTuple):
    """One pass of a model over a batch with N positions that count.

    Attributes:
      nats: its loss, summed over the positions by weight.
      weights: of the positions, [N].
      params: of the model.
      head_inputs: what its head reads; arrays [N, ...] where there are several `chunks`.
      predict: (params, head_inputs) -> log-probabilities [N, V] in nats, or values [N].
      chunks: in how many parts `predict` is to be called, so that no N x V is stored.
    """

    nats: jax.Array
    weights: jax.Array
    params: Any
    head_inputs: Any
    predict: Callable[[Any, Any], jax.Array]
    chunks: int = 1

    def stop_gradient(self) -> "ForwardPass":
        """The same without gradient."""
        params, head_inputs = jax.lax.stop_gradient((self.params, self.head_inputs))
        return self._replace(params=params, head_inputs=head_inputs)


# (params, batch, key, step) -> ForwardPass. A regularizer of the loss takes one and gives one: it
# may change the batch, pass more than once, and add terms to `nats`.
LossFn = Callable[..., ForwardPass]


def training_loss(model: Transformer, train: bool = True) -> LossFn:
    """The plain loss of a model, with dropout in training."""

    def loss(
        params: Any, batch: Batch, key: jax.Array, step: jax.Array | None = None
    ) -> ForwardPass:
        def head_loss(module: Any) -> Any:
            head_inputs = module.states(batch, train)
            return module.loss_of(head_inputs, batch, step), head_inputs

        rngs = dropout_keys(key) if train else {}
        found: Any = model.apply({"params": params}, method=head_loss, rngs=rngs)
        (nats, head_inputs), weights = found, batch.weights.reshape(-1)
        states, table = head_inputs
        head: Any = model.output_head()
        if model.outputs.real_targets or table is not None or head.sequence_level:

            def predict(params: Any, head_inputs: Any) -> Any:
                found: Any = model.apply(
                    {"params": params}, head_inputs, batch, method="head_outputs"
                )
                return found.reshape(len(weights), *found.shape[2:])

            return ForwardPass(nats, weights, params, head_inputs, predict)

        def token_log_probs(params: Any, states: Any) -> Any:
            return model.apply({"params": params}, states, method="word_log_probs")

        states = states.reshape(len(weights), -1)
        chunks = head.chunks(len(weights), 2 * head.logits_per_token)
        return ForwardPass(nats, weights, params, states, token_log_probs, chunks)

    return loss


def dropout_keys(key: jax.Array) -> dict[str, jax.Array]:
    """The model's random streams in training, of the key of a step."""
    return {
        "dropout": jax.random.fold_in(key, StepStream.DROPOUT),
        "softmax": jax.random.fold_in(key, StepStream.SOFTMAX),
    }
