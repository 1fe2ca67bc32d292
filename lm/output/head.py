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

    Facts about a kind of head, for code and tests:
      tieable: it can borrow the model's embedding table.
      needs_counts: its option `counts` wants the words' counts in the training text, [V].
      random: its training loss draws from the rng collection "softmax"; where that is not given,
        it is what the draws stand for.
      full_support: no probability is zero.
      whole_rows: hidden and targets keep their rows, [B, L, D] and [B, L].
    """

    tieable = True
    needs_counts = False
    random = False
    full_support = True
    whole_rows = False

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

    def loss_given(
        self,
        key: jax.Array | None,
        rows: jax.Array,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
    ) -> jax.Array:
        """`loss` as a pure function: a random head's draws depend on `key` and `rows` alone.

        Args:
          key: random key; None: without draws.
          rows: [N], the tokens' places in the whole batch.
          hidden, targets, embedding: as for `loss`.
        """
        return self.loss(hidden, targets, embedding)

    def total(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        embedding: jax.Array | None = None,
        step: jax.Array | None = None,
    ) -> jax.Array:
        """sum_i w_i loss_i in nats, a scalar, of hidden [N, D], targets [N] and weights [N].

        What training minimises. Where N x V is large, it is computed in chunks of tokens, with the
        gradient in the forward pass (see `chunked_total`). `step`, of training, is for heads whose
        loss follows a schedule.
        """
        key = self.random_key()
        if self.is_initializing():
            return jnp.sum(self.loss(hidden, targets, embedding) * weights)
        wanted = self.training_logits if key is not None else self.logits_per_token
        return self._sum("loss_given", key, wanted, hidden, targets, weights, embedding)

    def random_key(self) -> jax.Array | None:
        """A key where the head is random and the rng collection "softmax" is given, else None."""
        return self.make_rng("softmax") if self.random and self.has_rng("softmax") else None

    def likelihoods(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """`negative_log_likelihood`, [N], in chunks of tokens where N x V is large."""
        return self.in_chunks("negative_log_likelihood", hidden, targets, embedding)

    def sample(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Draws a word for every hidden state, [N], from the head's distribution."""
        return jax.random.categorical(key, self.log_probs(hidden, embedding), axis=-1)

    def in_chunks(
        self,
        method: str,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
    ) -> Any:
        """What a method of (hidden, targets, embedding) gives per token, in chunks of tokens."""
        chunks = self._chunks(hidden.shape[0], self.logits_per_token)
        if chunks == 1:
            return getattr(self, method)(hidden, targets, embedding)
        params, function = self._params(embedding), self._pure(method)
        found = jax.lax.map(
            lambda chunk: function(params, *chunk),
            (split(hidden, chunks), split(targets, chunks)),
        )
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), found)

    def _sum(self, method, key, per_token, hidden, targets, weights, embedding) -> jax.Array:
        """The weighted sum of a method like `loss_given`, in chunks where it is large."""
        chunks = self._chunks(hidden.shape[0], per_token)
        if chunks == 1:
            rows = jnp.arange(hidden.shape[0])
            losses = getattr(self, method)(key, rows, hidden, targets, embedding)
            return jnp.sum(losses * weights)
        head = self.clone(parent=None)

        def loss(params: Any, key: Any, rows: jax.Array, hidden: jax.Array, targets: jax.Array):
            own, embedding = params
            arguments = (key, rows, hidden, targets, embedding)
            return head.apply({"params": own}, *arguments, method=method)

        return chunked_total(loss, self._params(embedding), key, hidden, targets, weights, chunks)

    def _params(self, embedding: jax.Array | None) -> Any:
        return self.variables.get("params", {}), embedding

    def _pure(self, method: str) -> Any:
        """A method as a function of (own parameters and embedding, hidden, targets)."""
        head = self.clone(parent=None)

        def function(params: Any, hidden: jax.Array, targets: jax.Array) -> Any:
            own, embedding = params
            return head.apply({"params": own}, hidden, targets, embedding, method=method)

        return function

    def _chunks(self, tokens: int, per_token: int) -> int:
        """The fewest equal chunks of tokens whose logits stay below the limit."""
        if self.is_initializing():
            return 1
        wanted = -(-tokens * per_token // _logits_limit())
        return next(n for n in range(min(max(wanted, 1), tokens), tokens + 1) if tokens % n == 0)

    @property
    def logits_per_token(self) -> int:
        """How many logits a token's likelihood needs at once."""
        return self.vocab_size

    @property
    def training_logits(self) -> int:
        """How many logits a token's training loss needs at once."""
        return self.logits_per_token

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
