"""What is an output head? A module from hidden states to a loss and to log-probabilities."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.chunked import chunked_total, split
from lm.output.product import product


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
        chunks = self._chunks(hidden.shape[0])
        if chunks == 1:
            return jnp.sum(self.loss(hidden, targets, embedding) * weights)
        params = (self.variables.get("params", {}), embedding)
        return chunked_total(self._pure("loss"), params, hidden, targets, weights, chunks)

    def likelihoods(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """`negative_log_likelihood`, [N], in chunks of tokens where N x V is large."""
        chunks = self._chunks(hidden.shape[0])
        if chunks == 1:
            return self.negative_log_likelihood(hidden, targets, embedding)
        params = (self.variables.get("params", {}), embedding)
        function = self._pure("negative_log_likelihood")
        nats = jax.lax.map(
            lambda chunk: function(params, *chunk),
            (split(hidden, chunks), split(targets, chunks)),
        )
        return nats.swapaxes(0, 1).reshape(-1)

    def _pure(self, method: str) -> Any:
        """A method as a function of (own parameters and embedding, hidden, targets)."""
        head = self.clone(parent=None)

        def function(params: Any, hidden: jax.Array, targets: jax.Array) -> Any:
            own, embedding = params
            return head.apply({"params": own}, hidden, targets, embedding, method=method)

        return function

    def _chunks(self, tokens: int) -> int:
        """The fewest equal chunks of tokens whose logits stay below the limit."""
        if self.is_initializing():
            return 1
        wanted = -(-tokens * self.logits_per_token // _logits_limit())
        return next(n for n in range(min(max(wanted, 1), tokens), tokens + 1) if tokens % n == 0)

    @property
    def logits_per_token(self) -> int:
        """How many logits a token's loss needs at once."""
        return self.vocab_size

    def table(self, embedding: jax.Array | None) -> jax.Array:
        """The borrowed table where there is one, else the head's own, [V, D]."""
        if embedding is not None:
            return embedding
        return self.param(
            "table", self.table_init, (self.vocab_size, self.features), self.param_dtype
        )

    def logits(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """Hidden [N, D] times table [V, D] to [N, V], in float32 at least."""
        return product(hidden, table, jnp.dtype(self.dtype or hidden.dtype))


def _logits_limit() -> int:
    """Logits held at once, for all devices together: 64 MB on a CPU, 1 GB per device elsewhere."""
    on_cpu = jax.default_backend() == "cpu"
    return 16 * 1024 * 1024 if on_cpu else 256 * 1024 * 1024 * jax.device_count()
