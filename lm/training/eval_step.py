"""Computes likelihoods and predictions of rows: functions of (params, rows) beside the update."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import replace_within
from lm.data.objectives import Objective
from lm.model.transformer import Transformer
from lm.training.train_state import Params, Rows


@dataclasses.dataclass(frozen=True)
class EvalFunctions:
    """The functions `eval_step`, `eval_loss`, `predict` and `token_nll` of a `Program`, not jitted.

    Attributes:
      model: the Transformer.
      objective: makes batches of rows.
      vocab_size: V.
    """

    model: Transformer
    objective: Objective
    vocab_size: int

    def _apply(self, params: Params, *arguments: Any, **options: Any) -> Any:
        return self.model.apply({"params": params}, *arguments, **options)

    def eval_step(self, params: Params, rows: Rows) -> dict[str, jax.Array]:
        """See `Program`."""
        batch = self.objective(rows, jax.random.key(0))
        # Without a key: random softmaxes and heads are what their draws stand for.
        each = self._apply(params, batch, self.objective.accuracy, method="eval_metrics")
        found = {name: jnp.sum(value * batch.weights) for name, value in each.items()}
        if self.objective.metric == "eval/bits_per_byte":
            found["token_nats"] = each["nats"] * batch.weights
        return found | {
            "tokens": jnp.sum(batch.weights),
            "bytes": jnp.sum(rows["bytes"]),
            "words": jnp.zeros(self.vocab_size).at[batch.targets].add(batch.weights),
        }

    def eval_loss(self, params: Params, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """See `Program`."""
        batch = self.objective(rows, jax.random.key(0))
        nats = self._apply(params, batch, train=False, method="loss")
        return nats, jnp.sum(batch.weights)

    def predict(self, params: Params, rows: Rows) -> dict[str, jax.Array]:
        """See `Program`."""
        batch = self.objective(rows, jax.random.key(0))
        found = self._apply(params, batch, method="predictions")
        return found | {name: rows[name] for name in ("row", "weights", "spans") if name in rows}

    def token_nll(self, params: Params, rows: Rows) -> Any:
        """See `Program`."""
        batch = self.objective(rows, jax.random.key(0))
        square = self.model.clone(
            config=replace_within(self.model.config, query_chunk_size=0),
            outputs=dataclasses.replace(self.model.outputs, shards=None, target_fraction=1.0),
        )
        return square.apply({"params": params}, batch, method="negative_log_likelihood")
