"""What is an output head? A module from hidden states to a loss and to log-probabilities."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.chunked import chunked_total

# Logits that are held at once, for all devices together, before a loss is computed in chunks.
_LOGITS_LIMIT = 16 * 1024 * 1024


class Head(nn.Module):
    """The contract of all heads, and the word table that most of them own or borrow.

    A head is built with `vocab_size` V, `features` D and its own options. Every method takes hidden
    states [N, D] and, where the model ties it, the embedding table [V, D] instead of its own.

    Attributes:
      vocab_size: V, words.
      features: D.
      table_init: initialiser of the head's own table [V, D].
      dtype: of the matrix product's operands; sums and results are float32 at least.
      param_dtype: of the parameters.
    """

    vocab_size: int
    features: int
    table_init: Any = nn.initializers.normal(0.02)
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N], of hidden [N, D] and targets [N]."""
        raise NotImplementedError

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        raise NotImplementedError

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N]: what tables compare, whatever the training loss is."""
        log_probs = self.log_probs(hidden, embedding)
        return -jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]

    def total(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        embedding: jax.Array | None = None,
    ) -> jax.Array:
        """sum_i w_i loss_i in nats, a scalar, of hidden [N, D], targets [N] and weights [N].

        What training minimises. Where N x V is large, it is computed in chunks of tokens, with the
        gradient in the forward pass (see `chunked_total`).
        """
        chunks = _chunks(hidden.shape[0], self.vocab_size)
        if chunks == 1 or self.is_initializing():
            return jnp.sum(self.loss(hidden, targets, embedding) * weights)
        params = self.variables.get("params", {})
        pure = self.clone(parent=None)

        def loss(params: Any, hidden: jax.Array, targets: jax.Array) -> Any:
            own, embedding = params
            return pure.apply({"params": own}, hidden, targets, embedding, method="loss")

        return chunked_total(loss, (params, embedding), hidden, targets, weights, chunks)

    def table(self, embedding: jax.Array | None) -> jax.Array:
        """The borrowed table where there is one, else the head's own, [V, D]."""
        if embedding is not None:
            return embedding
        return self.param(
            "table", self.table_init, (self.vocab_size, self.features), self.param_dtype
        )

    def logits(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """Hidden [N, D] times table [V, D] to [N, V], in float32 at least."""
        dtype = self.dtype or hidden.dtype
        return jnp.einsum(
            "nd,vd->nv",
            hidden.astype(dtype),
            table.astype(dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )


def _chunks(tokens: int, vocab_size: int) -> int:
    """The fewest equal chunks of tokens whose logits stay below the limit."""
    wanted = -(-tokens * vocab_size // _LOGITS_LIMIT)
    return next(n for n in range(max(wanted, 1), tokens + 1) if tokens % n == 0)
