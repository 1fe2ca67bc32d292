"""What does a model say of a batch in training, and how far is that from what another pass says?
The contract of the habits that look at more than one pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.model.transformer import Batch, Transformer
from lm.output.chunked import join, split


class Pass(NamedTuple):
    """One pass of a model over a batch with N places that count.

    Attributes:
      nats: its loss, summed over the places by weight.
      weights: of the places, [N].
      params: of the model.
      seen: what its head saw; arrays [N, ...] where there are several `chunks`.
      told: (params, seen) -> what it says: log-probabilities [N, V] in nats, or numbers [N].
      chunks: in how many parts `told` is to be asked, so that no N x V is stored.
    """

    nats: jax.Array
    weights: jax.Array
    params: Any
    seen: Any
    told: Callable[[Any, Any], jax.Array]
    chunks: int = 1

    def fixed(self) -> "Pass":
        """The same without gradient."""
        params, seen = jax.lax.stop_gradient((self.params, self.seen))
        return self._replace(params=params, seen=seen)


# (params, batch, key, step) -> Pass. A habit of the loss takes one and gives one: it may change the
# batch, pass more than once, and add terms to `nats`.
Forward = Callable[..., Pass]
# What two passes say [N, ...] -> a number for each place, [N].
Measure = Callable[[jax.Array, jax.Array], jax.Array]


def forward(model: Transformer, train: bool = True) -> Forward:
    """The plain pass of a model, with dropout in training."""

    def once(params: Any, batch: Batch, key: jax.Array, step: jax.Array | None = None) -> Pass:
        def look(module: Any) -> Any:
            seen = module.states(batch, train)
            return module.loss_of(seen, batch, step), seen

        rngs = {"dropout": jax.random.fold_in(key, 0), "softmax": jax.random.fold_in(key, 1)}
        rngs = rngs if train else {}
        found: Any = model.apply({"params": params}, method=look, rngs=rngs)
        (nats, seen), weights = found, batch.weights.reshape(-1)
        states, table = seen
        head: Any = model.output_head()
        if model.outputs.real_targets or table is not None or head.sequence_level:

            def told(params: Any, seen: Any) -> Any:
                found: Any = model.apply({"params": params}, seen, batch, method="head_outputs")
                return found.reshape(len(weights), *found.shape[2:])

            return Pass(nats, weights, params, seen, told)

        def of_words(params: Any, states: Any) -> Any:
            return model.apply({"params": params}, states, method="word_log_probs")

        states = states.reshape(len(weights), -1)
        chunks = head.chunks(len(weights), 2 * head.logits_per_token)
        return Pass(nats, weights, params, states, of_words, chunks)

    return once


def compared(measure: Measure, first: Pass, second: Pass) -> jax.Array:
    """sum_i w_i measure(what the first says, what the second says)_i, a scalar.

    In as many chunks as the first has, each computed again in the backward pass.
    """

    def part(seen: Any) -> jax.Array:
        both = zip((first, second), seen, strict=True)
        return measure(*(each.told(each.params, own) for each, own in both))

    seen = (first.seen, second.seen)
    if first.chunks == 1:
        found = part(seen)
    else:
        parts = tuple(split(each, first.chunks) for each in seen)
        found = join(jax.lax.map(jax.checkpoint(part), parts), len(first.weights))
    return jnp.sum(found * first.weights)


def symmetric(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p || q) + KL(q || p) = sum_v (p_v - q_v) (log p_v - log q_v), [N], at least 0.

    Of log-probabilities [N, V] in nats. Numbers [N] are the means of Gaussians of variance 1, as in
    the likelihood of a regression: (p - q)^2.
    """
    if p.ndim == 1:
        return jnp.square(p - q)
    return jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1)
