"""The contract of an output head: a module from hidden states to a loss and log-probabilities."""

import types
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from lm.devices.platform import device_count
from lm.output.chunked import chunked, chunked_map
from lm.output.chunking import chunk_count, gather_size
from lm.output.gathered import gathered, gathered_map
from lm.output.kernels import Choice, choose
from lm.output.loss_and_grad import TokenLoss, at_once, loss_sum
from lm.output.product import product
from lm.output.sharded import Shards, sharded, sharded_map


class Head(nn.Module):
    """The contract of all heads, and the vocabulary's table that most of them own or borrow.

    A head is built with `vocab_size` V, `d_model` D and its own options. Every method takes hidden
    states [N, D] and, where the model ties it, the embedding table [V, D] instead of its own.

    Attributes:
      vocab_size: V.
      d_model: D.
      table_init: initialiser of the head's own table [V, D].
      dtype: of the matrix product's operands; sums and results are float32 at least.
      param_dtype: of the parameters.
      token_chunk_size: tokens whose logits are computed at once; None: by size; 0: all.
      target_fraction: about how many of the tokens count in the loss. Below 1, those of weight 0
        are left out before the head, and cost nothing.
      shards: how several devices share the work; None: as the compiler finds.
      vocab_axis: the mesh axis over which this is the head of one device's part of the vocabulary;
        set by the head itself, inside `sharded`.
      fused: its loss is computed by TPU kernels; set by the head itself, where it chose them.

    Facts about a kind of head, for code and tests:
      tieable: it can borrow the model's embedding table.
      needs_counts: its option `counts` wants the tokens' counts in the training text, [V].
      random: its training loss draws from the rng collection "softmax"; where that is not given,
        it is what the draws stand for.
      full_support: no probability is zero.
      sequence_level: hidden and targets keep their rows, [B, L, D] and [B, L].
      vocab_shardable: its loss and its likelihood can be computed with the vocabulary split over
        devices.
      has_kernel: its training loss follows from the statistics of h W' + b, which TPU kernels
        compute (`lm.output.kernels`).
      vocab_dims: own parameters that have an entry for each token of the vocabulary, and along
        which dimension.
    """

    tieable: ClassVar[bool] = True
    needs_counts: ClassVar[bool] = False
    random: ClassVar[bool] = False
    full_support: ClassVar[bool] = True
    sequence_level: ClassVar[bool] = False
    vocab_shardable: ClassVar[bool] = False
    has_kernel: ClassVar[bool] = False
    vocab_dims: ClassVar[Mapping[str, int]] = types.MappingProxyType({"table": 0, "bias": 0})

    vocab_size: int
    d_model: int
    table_init: Initializer = nn.initializers.normal(0.02)
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    token_chunk_size: int | None = None
    target_fraction: float = 1.0
    shards: Shards | None = None
    vocab_axis: str | None = None
    fused: bool = False

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N], of hidden [N, D] and targets [N]: -log p(target).

        That of a `random` head also takes `key`, from which it draws (None: the rng "softmax", if
        there is one), and `index`, [N], each token's place in the whole batch: its draws depend on
        nothing else.
        """
        return self.negative_log_likelihood(hidden, targets, embedding)

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        raise NotImplementedError

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N]: what tables compare, whatever the training loss is."""
        return -take_targets(self.log_probs(hidden, embedding), targets)

    def is_correct(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """1 where the most likely token is the target, else 0, [N]."""
        most_likely = jnp.argmax(self.log_probs(hidden, embedding), axis=-1)
        return (most_likely == targets).astype(jnp.float32)

    def loss_sum(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        embedding: jax.Array | None = None,
        step: jax.Array | None = None,
    ) -> jax.Array:
        """sum_i w_i loss_i in nats, a scalar, of hidden [N, D], targets [N] and weights [N].

        What training minimises. On TPUs, kernels compute it where they are faster (see
        `lm.output.kernels`). Else, where N x V is large, it is computed in chunks of tokens, with
        the gradient in the forward pass (see `lm.output.chunked`). `step`, of training, is for
        heads whose loss follows a schedule.
        """
        key = self.random_key()
        if self.is_initializing():
            return jnp.sum(self.loss(hidden, targets, embedding) * weights)
        shards = self._shards_of(hidden.shape[0])
        exact = self.random and key is None
        per_token = self.logits_per_token if exact else self.training_logits
        whole = self.target_fraction == 1.0
        fused = self.choose(hidden.shape[0]).fused
        if shards is None and whole and not fused and self.chunks(len(hidden), per_token) == 1:
            draws = {"key": key, "index": jnp.arange(len(hidden))} if self.random else {}
            return jnp.sum(self.loss(hidden, targets, embedding, **draws) * weights)
        head = self._local_head(shards, fused)
        loss, params = head._pure_loss(), self._params(embedding)
        if shards is None and whole and fused:
            losses = loss(params, key, jnp.arange(len(hidden)), hidden, targets)
            return jnp.sum(losses * weights)

        def compute(params, key, index, hidden, *tokens):
            if whole and fused:
                parts = at_once(loss)
            elif whole:
                parts = chunked(loss, head.chunks(len(hidden), per_token))
            else:
                parts = gathered(loss, head._gather_size(len(hidden), per_token))
            return parts(params, key, index, hidden, *tokens)

        if shards is not None:
            per_token = per_token // shards.vocab_shards
            compute = sharded(compute, shards, self.vocab_dims)
        return loss_sum(compute, params, key, hidden, targets, weights)

    def random_key(self) -> jax.Array | None:
        """A key where the head is random and the rng collection "softmax" is given, else None."""
        return self.make_rng("softmax") if self.random and self.has_rng("softmax") else None

    def sample(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Draws a token for every hidden state, [N], from the head's distribution."""
        return jax.random.categorical(key, self.log_probs(hidden, embedding), axis=-1)

    def per_token(
        self,
        method: str,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        where: jax.Array | None = None,
        full_vocab: bool = False,
    ) -> Any:
        """The result of a method of (hidden, targets, embedding) per token, in chunks of tokens.

        Args:
          method: its name.
          hidden, targets, embedding: as for `loss`.
          where: [N] boolean, which tokens count; None: all. Where `target_fraction` is below 1,
            only these cost anything, and the results of others mean nothing.
          full_vocab: the method needs the whole vocabulary on one device, also where devices share
            it.
        """
        shards = None if full_vocab else self._shards_of(hidden.shape[0])
        head = self._local_head(shards)

        def function(params, hidden: jax.Array, targets: jax.Array) -> Any:
            own, embedding = params
            return head.apply({"params": own}, hidden, targets, embedding, method=method)

        def compute(params, hidden: jax.Array, *tokens: jax.Array) -> Any:
            size, per_token = len(hidden), head.logits_per_token
            if self.target_fraction == 1.0:
                parts = chunked_map(function, head.chunks(size, per_token))
            else:
                parts = gathered_map(function, head._gather_size(size, per_token))
            return parts(params, hidden, *tokens)

        if shards is not None:
            compute = sharded_map(compute, shards, self.vocab_dims)
        where = jnp.ones(targets.shape, bool) if where is None else where
        return compute(self._params(embedding), *map(jnp.asarray, (hidden, targets, where)))

    def _params(self, embedding: jax.Array | None) -> tuple[Mapping[str, Any], jax.Array | None]:
        return self.variables.get("params", {}), embedding

    @nn.nowrap
    def _pure_loss(self) -> TokenLoss:
        """`loss` as a pure function of (params, key, index, hidden, targets)."""
        head = self.clone(parent=None)

        def loss(params, key, index, hidden, targets):
            own, embedding = params
            draws = {"key": key, "index": index} if self.random else {}
            arguments = (hidden, targets, embedding)
            losses: Any = head.apply({"params": own}, *arguments, **draws, method="loss")
            return losses

        return loss

    def _shards_of(self, tokens: int) -> Shards | None:
        """How devices share so many tokens; None where one device, or the compiler, has them."""
        shards = self.shards if self.vocab_shardable else None
        shards = shards and shards.of_vocab(self.vocab_size)
        return shards if shards is not None and tokens % shards.token_shards == 0 else None

    def _local_head(self, shards: Shards | None, fused: bool = False) -> "Head":
        """The same head, or that of one device's part of the vocabulary, as its own module."""
        if shards is None:
            return self.clone(parent=None, fused=fused)
        vocab_size, axis = self.vocab_size // shards.vocab_shards, shards.vocab_axis
        part = {"vocab_size": vocab_size, "vocab_axis": axis, "shards": None, "fused": fused}
        return self.clone(parent=None, **part)

    @nn.nowrap
    def choose(self, tokens: int) -> Choice:
        """Whether kernels compute the training loss of so many tokens, of all devices."""
        if self.token_chunk_size is not None:
            return Choice(False)
        shards, words, refused = self._shards_of(tokens), self.vocab_size, ""
        if shards is not None:
            tokens, words = tokens // shards.token_shards, words // shards.vocab_shards
        elif device_count() > 1:
            refused = "tokens do not divide over the mesh"
        if self.target_fraction < 1.0:
            tokens = self._gather_size(tokens, 1)
        if not self.has_kernel:
            refused = f"{type(self).__name__} has none"
        chunks = chunk_count(tokens, words, None)
        dtype = self.dtype or self.param_dtype
        return choose(tokens, words, self.d_model, dtype, chunks, refused)

    @nn.nowrap
    def chunks(self, tokens: int, per_token: int) -> int:
        """In how many chunks so many tokens are computed, with so many logits for each."""
        devices = 1 if self.shards is None else self.shards.mesh.size
        return chunk_count(tokens, per_token, self.token_chunk_size, devices)

    @nn.nowrap
    def _gather_size(self, tokens: int, per_token: int) -> int:
        held = 1 if self.fused else per_token
        return gather_size(tokens, self.target_fraction, held, self.token_chunk_size)

    def describe(self, tokens: int) -> str:
        """How training computes so many tokens, for a run's log."""
        if self.sequence_level:
            return "whole rows at once"
        choice, shards = self.choose(tokens), self._shards_of(tokens)
        head, per_token, part, how = self, self.training_logits, "", " at once"
        if shards is not None:
            head = self._local_head(shards)
            tokens, per_token = tokens // shards.token_shards, per_token // shards.vocab_shards
            part = f" of {head.vocab_size} words on each device"
        if choice.fused:
            per_token, how = 1, " by TPU kernels"
        why = f" (no kernel: {choice.reason})" if choice.reason else ""
        if self.target_fraction < 1.0:
            size = head._gather_size(tokens, per_token)
            by = how if choice.fused else ""
            return f"{size} of {tokens} tokens gathered at a time{part}{by}{why}"
        chunks = head.chunks(tokens, per_token)
        if chunks > 1:
            return f"{chunks} chunks of {-(-tokens // chunks)} tokens{part}{why}"
        return f"{tokens} tokens{part}{how}{why}"

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

    def project(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """Hidden [N, D] times table [V, D] to [N, V], in float32 at least."""
        return product(hidden, table, jnp.dtype(self.dtype or hidden.dtype))

    def project_each(self, hidden: jax.Array, vectors: jax.Array) -> jax.Array:
        """Hidden [N, D] times vectors [N, K, D] of each token's own to [N, K]; see `project`."""
        dtype = jnp.dtype(self.dtype or hidden.dtype)
        hidden, vectors = hidden.astype(dtype), vectors.astype(dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        return jnp.einsum("nd,nkd->nk", hidden, vectors, preferred_element_type=wide)


def take_targets(x: jax.Array, targets: jax.Array) -> jax.Array:
    """The entry of each row of x [N, V] at its target, [N]."""
    return jnp.take_along_axis(x, targets[:, None], axis=-1)[:, 0]
