"""The decision of a model that is explained: a probability of each class or token, as a function of
the tokens, of their vectors, or of the hidden states of a layer.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext
from jax.typing import ArrayLike

from lm.config import replace_within
from lm.generation.decode import StaticModel
from lm.model.batch import Batch
from lm.model.embedding import Embedding
from lm.model.layers import Block
from lm.model.transformer import Transformer

Params = Mapping[str, Any]
Intercepted = Callable[..., jax.Array]


@flax.struct.dataclass
class Decision:
    """What a model decides, computed in float32 with attention in one piece.

    Attributes:
      static: the model, of `decision_of`.
      params: all of its parameters.
    """

    params: Params
    static: StaticModel = flax.struct.field(pytree_node=False)

    @property
    def model(self) -> Transformer:
        """The model."""
        return self.static.model

    @property
    def score(self) -> str:
        """What of a candidate is explained: "value" of a regression, "log_probability", or
        "probability" where the head gives some candidates none.
        """
        if self.model.outputs.real_targets:
            return "value"
        return "log_probability" if self.model.output_head().full_support else "probability"

    def outputs(
        self, batch: Batch, vectors: jax.Array | None = None, states: jax.Array | None = None
    ) -> jax.Array:
        """Log-probabilities [B, V] in nats of what is decided in each row; of a regression, values
        [B, 1].

        Args:
          batch: B rows; the decision of a language model is read at `batch.target_positions`.
          vectors: [B, L, E], in place of the tokens' own; positions and types are still added.
          states: [B, L, D], in place of the outputs of the last layer.
        """
        with nn.intercept_methods(_replacing(vectors, states)):
            found = self.model.apply({"params": self.params}, batch, method=_decide)
        return jnp.asarray(found).astype(jnp.float32)

    def next_tokens(self, batch: Batch, states: jax.Array) -> jax.Array:
        """Of a language model, log-probabilities [B, L, V] of what follows each token, by `states`
        as of `outputs`.
        """
        with nn.intercept_methods(_replacing(None, states)):
            found = self.model.apply({"params": self.params}, batch, method="log_probs")
        return jnp.asarray(found)

    def scores(self, outputs: ArrayLike) -> jax.Array:
        """What is explained of all candidates, [B, V], of `outputs`."""
        return jnp.exp(outputs) if self.score == "probability" else jnp.asarray(outputs)


def decision_of(model: Transformer, params: Params) -> Decision:
    """The decision of a model in float32, without chunks of queries or rematerialisation."""
    return Decision(params, _plain(StaticModel(model)))


@functools.lru_cache(maxsize=8)  # so that programs of one model are compiled once
def _plain(static: StaticModel) -> StaticModel:
    changes = {"dtype": "float32", "query_chunk_size": 0, "remat": False}
    model = static.model
    return StaticModel(model.clone(config=replace_within(model.config, **changes)))


def _decide(model: Transformer, batch: Batch) -> jax.Array:
    """A method of the model: see `Decision.outputs`."""
    if model.outputs.readout == "all_positions":
        assert batch.target_positions is not None
        hidden = model.head_inputs(batch)
        last = jnp.take_along_axis(hidden, batch.target_positions[:, :, None], axis=1)[:, 0]
        return model.token_log_probs(last)
    found = model.head_outputs(model.states(batch), batch)
    return found if model.outputs.real_targets else found[:, 0]


def _replacing(vectors: jax.Array | None, states: jax.Array | None) -> Callable[..., jax.Array]:
    """An interceptor of calls that puts in others' place what is given."""

    def intercept(
        call: Intercepted, args: tuple[Any, ...], kwargs: Params, context: InterceptorContext
    ) -> jax.Array:
        module = context.module
        if context.method_name == "__call__":
            if states is not None and isinstance(module, Block):
                return states
            if vectors is not None and isinstance(module, Embedding):
                return call(vectors, *args[1:], **kwargs)
        return call(*args, **kwargs)

    return intercept
