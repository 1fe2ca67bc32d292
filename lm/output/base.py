"""What is an output head? A module from hidden states to a loss and to log-probabilities."""

import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.chunked import chunked, chunked_map
from lm.output.chunking import block_size, chunk_count
from lm.output.gathered import gathered, gathered_map
from lm.output.loss_and_grad import total
from lm.output.product import product
from lm.output.sharded import Shards, sharded, sharded_map


class Head(nn.Module):
    """The contract of all heads, and the word table that most of them own or borrow.

    A head is built with `vocab_size` V, `d_model` D and its own options. Every method takes hidden
    states [N, D] and, where the model ties it, the embedding table [V, D] instead of its own.

    Attributes:
      vocab_size: V, words.
      d_model: D.
      table_init: initialiser of the head's own table [V, D].
      dtype: of the matrix product's operands; sums and results are float32 at least.
      param_dtype: of the parameters.
      token_chunk_size: tokens whose logits are computed at once; None: by size; 0: all.
      share: of the tokens that count in the loss, about. Below 1, those of weight 0 are left out
        before the head, and cost nothing.
      shards: how several devices share the work; None: as the compiler finds.
      words_axis: the mesh axis over which this is the head of one device's words; set by the head
        itself, inside `sharded`.

    Facts about a kind of head, for code and tests:
      tieable: it can borrow the model's embedding table.
      needs_counts: its option `counts` wants the words' counts in the training text, [V].
      random: its training loss draws from the rng collection "softmax"; where that is not given,
        it is what the draws stand for.
      full_support: no probability is zero.
      whole_rows: hidden and targets keep their rows, [B, L, D] and [B, L].
      splits: its loss and its likelihood can be computed with the words split over devices.
      by_words: own parameters that have an entry for each word, and along which axis.
    """

    tieable = True
    needs_counts = False
    random = False
    full_support = True
    whole_rows = False
    splits = False
    by_words = types.MappingProxyType({"table": 0, "bias": 0})

    vocab_size: int
    d_model: int
    table_init: Any = nn.initializers.normal(0.02)
    dtype: Any = None
    param_dtype: Any = jnp.float32
    token_chunk_size: int | None = None
    share: float = 1.0
    shards: Shards | None = None
    words_axis: str | None = None

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

    def hits(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """1 where the likeliest word is the target, else 0, [N]."""
        likeliest = jnp.argmax(self.log_probs(hidden, embedding), axis=-1)
        return (likeliest == targets).astype(jnp.float32)

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
        gradient in the forward pass (see `lm.output.chunked`). `step`, of training, is for heads
        whose loss follows a schedule.
        """
        key = self.random_key()
        if self.is_initializing():
            return jnp.sum(self.loss(hidden, targets, embedding) * weights)
        shards = self._sharing(hidden.shape[0])
        wanted = (
            self.training_logits if key is not None or not self.random else self.logits_per_token
        )
        if shards is None and self.share == 1.0 and self.chunks(hidden.shape[0], wanted) == 1:
            rows = jnp.arange(hidden.shape[0])
            return jnp.sum(self.loss_given(key, rows, hidden, targets, embedding) * weights)
        head = self._part(shards)

        def loss(params: Any, key: Any, rows: jax.Array, hidden: jax.Array, targets: jax.Array):
            own, embedding = params
            arguments = (key, rows, hidden, targets, embedding)
            return head.apply({"params": own}, *arguments, method="loss_given")

        def compute(params, key, rows, hidden, *tokens):
            if self.share == 1.0:
                parts = chunked(loss, head.chunks(len(hidden), wanted))
            else:
                parts = gathered(
                    loss, block_size(len(hidden), self.share, wanted, self.token_chunk_size)
                )
            return parts(params, key, rows, hidden, *tokens)

        if shards is not None:
            wanted = wanted // shards.word_parts
            compute = sharded(compute, shards, self.by_words)
        return total(compute, self._params(embedding), key, hidden, targets, weights)

    def random_key(self) -> jax.Array | None:
        """A key where the head is random and the rng collection "softmax" is given, else None."""
        return self.make_rng("softmax") if self.random and self.has_rng("softmax") else None

    def sample(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Draws a word for every hidden state, [N], from the head's distribution."""
        return jax.random.categorical(key, self.log_probs(hidden, embedding), axis=-1)

    def per_token(
        self,
        method: str,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        where: jax.Array | None = None,
        whole: bool = False,
    ) -> Any:
        """What a method of (hidden, targets, embedding) gives per token, in chunks of tokens.

        `where`, [N] boolean, says which tokens count; None: all. Where `share` is below 1, only
        these cost anything, and the others get numbers that mean nothing. `whole`: the method wants
        all words in one place, also where devices share them.
        """
        params = self._params(embedding)
        shards = None if whole else self._sharing(hidden.shape[0])
        head = self._part(shards)

        def function(params: Any, hidden: jax.Array, targets: jax.Array) -> Any:
            own, embedding = params
            return head.apply({"params": own}, hidden, targets, embedding, method=method)

        def compute(params: Any, hidden: jax.Array, *tokens: jax.Array) -> Any:
            size, wanted = len(hidden), head.logits_per_token
            if self.share == 1.0:
                parts = chunked_map(function, head.chunks(size, wanted))
            else:
                parts = gathered_map(
                    function, block_size(size, self.share, wanted, self.token_chunk_size)
                )
            return parts(params, hidden, *tokens)

        if shards is not None:
            compute = sharded_map(compute, shards, self.by_words)
        where = jnp.ones(targets.shape, bool) if where is None else where
        return compute(params, *map(jnp.asarray, (hidden, targets, where)))

    def _params(self, embedding: jax.Array | None) -> Any:
        return self.variables.get("params", {}), embedding

    def _sharing(self, tokens: int) -> Shards | None:
        """How devices share so many tokens; None where one device, or the compiler, has them."""
        shards = self.shards if self.splits else None
        return shards if shards is not None and tokens % shards.token_parts == 0 else None

    def _part(self, shards: Shards | None) -> Any:
        """The same head, or that of one device's words, as a module of its own."""
        if shards is None:
            return self.clone(parent=None)
        words = self.vocab_size // shards.word_parts
        return self.clone(parent=None, vocab_size=words, words_axis=shards.words, shards=None)

    def chunks(self, tokens: int, per_token: int) -> int:
        """In how many chunks so many tokens are computed, with so many logits for each."""
        devices = 1 if self.shards is None else self.shards.mesh.size
        return chunk_count(tokens, per_token, self.token_chunk_size, devices)

    def describe(self, tokens: int) -> str:
        """How training computes so many tokens, for a run's log."""
        if self.whole_rows:
            return "whole rows at once"
        shards, wanted, words = self._sharing(tokens), self.training_logits, ""
        if shards is not None:
            tokens, wanted = tokens // shards.token_parts, wanted // shards.word_parts
            words = f" of {self.vocab_size // shards.word_parts} words on each device"
        if self.share < 1.0:
            size = block_size(tokens, self.share, wanted, self.token_chunk_size)
            return f"{size} of {tokens} tokens gathered at a time{words}"
        chunks = self.chunks(tokens, wanted)
        if chunks == 1:
            return f"{tokens} tokens{words} at once"
        return f"{chunks} chunks of {-(-tokens // chunks)} tokens{words}"

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
            "table", self.table_init, (self.vocab_size, self.d_model), self.param_dtype
        )

    def logits(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """Hidden [N, D] times table [V, D] to [N, V], in float32 at least."""
        return product(hidden, table, jnp.dtype(self.dtype or hidden.dtype))
