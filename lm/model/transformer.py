"""The Transformer, which maps tokens to hidden states, a loss and a distribution: a decoder, an
encoder, or both, of the same blocks, with an output head of `lm.output.OUTPUTS` on top.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import Mask
from lm.devices.sharding import sequence_parts
from lm.model.batch import Batch
from lm.model.config import ModelConfig, OutputSpace
from lm.model.embedding import Embedding
from lm.model.layers import HeadTransform, Pooler, Stack
from lm.model.pooling import READOUTS, Seen
from lm.output import OUTPUTS


class Transformer(nn.Module):
    """A Transformer with a swappable softmax inside (attention) and on top (output).

    Attributes:
      config: the sizes and parts of its modules.
      vocab_size: V.
      outputs: what the head chooses among.
    """

    config: ModelConfig
    vocab_size: int
    outputs: OutputSpace = OutputSpace()

    def setup(self) -> None:
        """Makes the parts: token table, embeddings, stacks and head."""
        config, numerics = self.config, self.config.numerics
        param_dtype = numerics.dtypes["param_dtype"]
        shape = (self.vocab_size, config.embedding.embedding_dim)
        self.embedding = self.param("embedding", numerics.init, shape, param_dtype)
        if config.encoder is not None:
            self.encoder_inputs = Embedding(config.embedding)
            self.encoder = Stack(config.encoder)
        self.inputs = Embedding(config.embedding)
        self.stack = Stack(config.stack)
        if config.transform is not None:
            self.transform = HeadTransform(config.transform)
        if config.pooler:
            self.pool = Pooler(numerics)
        self.read = READOUTS[self.outputs.readout](config.d_model, numerics.init, param_dtype)
        self.head = self.output_head()

    @nn.nowrap  # so that it can be asked for outside `apply` too
    def output_head(self) -> Any:
        """The head that the config describes."""
        config, outputs = self.config, self.outputs
        kind, options = OUTPUTS[config.head.head], dict(config.head.options)
        if kind.needs_counts:
            options["counts"] = outputs.counts
        if outputs.real_targets:
            options["real_targets"] = True
        transforms = config.transform is not None and outputs.readout == "all_positions"
        features = config.embedding.embedding_dim if transforms else config.d_model
        return kind(
            outputs.num_classes or self.vocab_size,
            features + READOUTS[outputs.readout].extra,
            table_init=config.numerics.init,
            token_chunk_size=config.head.token_chunk_size,
            target_fraction=outputs.target_fraction,
            shards=outputs.shards,
            **config.numerics.dtypes,
            **options,
        )

    def __call__(
        self,
        batch: Batch,
        train: bool = False,
        offset: jax.Array | int = 0,
        padding: jax.Array | None = None,
        cache_length: int | None = None,
    ) -> jax.Array:
        """Hidden states [B, L, D] of a batch.

        Args:
          batch: the tokens; its targets are not looked at. Decoding with a cache that holds an
            encoder's keys, its `encoder_inputs` are None.
          train: dropout is on (needs an rng named "dropout").
          offset, padding, cache_length: for decoding with a cache: where these tokens stand among
            the cache's keys, which keys are real ([B, cache_length]), and how many it holds.
        """
        memory, memory_mask = None, Mask()
        if self.config.encoder is not None:
            places = {"positions": batch.positions, "key_positions": batch.encoder_positions}
            memory_mask = Mask(
                segments=batch.segments, key_segments=batch.encoder_segments, **places
            )
        if batch.encoder_inputs is not None:
            vectors, positions = self.embedding[batch.encoder_inputs], batch.encoder_positions
            assert positions is not None
            inputs = self.encoder_inputs(vectors, positions, None, train)
            memory = self.encoder(
                inputs, positions, Mask(segments=batch.encoder_segments), train=train
            )
        causal = self.config.architecture != "encoder"
        mask = Mask(causal=causal, segments=batch.segments, prefix=batch.prefix)
        if cache_length is not None:
            mask = dataclasses.replace(mask, segments=None, offset=offset, padding=padding)
        vectors = self.embedding[batch.inputs]
        x = self.inputs(vectors, batch.positions, batch.token_types, train)
        return self.stack(x, batch.positions, mask, memory, memory_mask, train, cache_length)

    def pooled(self, batch: Batch, train: bool = False) -> jax.Array:
        """A vector for each row, [B, D], of a model that has a pooler."""
        return self.pool(self(batch, train))

    def head_inputs(self, batch: Batch, train: bool = False, **decoding: Any) -> jax.Array:
        """The hidden states that the head reads, [B, L, D], or [B, L, E] behind a transform."""
        hidden = self(batch, train, **decoding)
        if self.config.pooler and self.is_initializing():
            self.pool(hidden)
        transforms = self.config.transform is not None and self.outputs.readout == "all_positions"
        return self.transform(hidden) if transforms else hidden

    def loss(self, batch: Batch, train: bool = True, step: jax.Array | None = None) -> jax.Array:
        """Training loss in nats, summed over the batch's positions with their weights.

        `step`, of training, is for heads whose loss follows a schedule.
        """
        return self.head_loss(self.states(batch, train), batch, step)

    def head_loss(self, seen: Seen, batch: Batch, step: jax.Array | None = None) -> jax.Array:
        """The training loss of what the head sees."""
        states, table = seen
        if table is not None:
            return jnp.sum(self._point("loss", states, batch.targets, table) * batch.weights)
        arrays = (states, batch.targets, batch.weights)
        return self.head.loss_sum(*map(self._tokens, arrays), self._tied_table(), step)

    def negative_log_likelihood(self, batch: Batch) -> jax.Array:
        """-log p(target) in nats, [B, L], of the positions that count: what evaluation reports."""
        return self._each("negative_log_likelihood", self.states(batch), batch)

    def eval_metrics(self, batch: Batch, accuracy: bool = False) -> dict[str, jax.Array]:
        """Evaluation's, each [B, L]: "nats", "accuracy" if asked for, and `support_metrics`."""
        seen = self.states(batch)
        found = {"nats": self._each("negative_log_likelihood", seen, batch)}
        if accuracy:
            found["accuracy"] = self._each("is_correct", seen, batch, full_vocab=True)
        if not self.head.full_support:
            found |= self._each("support_metrics", seen, batch)
        return found

    def predictions(self, batch: Batch) -> dict[str, jax.Array]:
        """What a task is judged by, [B, T, ...]: "nats" of the targets and "log_probs" of all
        classes, or "hits" where these are tokens; of real targets, "values"; and "best" where the
        likeliest row of targets is not that of the likeliest targets.
        """
        seen = self.states(batch)
        found = {"nats": self._each("negative_log_likelihood", seen, batch)}
        real = self.outputs.real_targets
        if real or self.outputs.num_classes:
            found["values" if real else "log_probs"] = self.head_outputs(seen, batch)
        else:
            found["hits"] = self._each("is_correct", seen, batch, full_vocab=True)
        if self.head.sequence_level:
            found["best"] = self.head.best(seen[0], self._tied_table(), **self._where(batch))
        return found

    def head_outputs(self, seen: Seen, batch: Batch) -> jax.Array:
        """Log-probabilities [B, T, V] of what the head sees; of real targets, values [B, T]."""
        states, table = seen
        if self.outputs.real_targets:
            return self._rows(self.head.values(self._tokens(states)), batch.targets.shape)
        if table is not None:
            return self._point("log_probs", states, table)
        flat = self.head.log_probs(self._tokens(states), self._tied_table(), **self._where(batch))
        return self._rows(flat, batch.targets.shape)

    def log_probs(self, batch: Batch, **decoding: Any) -> jax.Array:
        """Log-probabilities [B, L, V] in nats; `decoding` as in `__call__`."""
        hidden = self.head_inputs(batch, **decoding)
        flat = self.token_log_probs(self._tokens(hidden))
        return self._rows(flat, hidden.shape[:2])

    def token_log_probs(self, hidden: jax.Array) -> jax.Array:
        """Log-probabilities [N, V] in nats of hidden states [N, D]."""
        return self.head.log_probs(hidden, self._tied_table())

    def sample_tokens(self, hidden: jax.Array, key: jax.Array) -> jax.Array:
        """Tokens [N] drawn from the head's distribution at hidden states [N, D]."""
        return self.head.sample(hidden, key, self._tied_table())

    def states(self, batch: Batch, train: bool = False) -> Seen:
        """What the head sees, [B, T, D], and what it chooses among where that is no own table."""
        batch = self.read.flat(batch)
        return self.read(self.head_inputs(batch, train), batch)

    def _each(self, method: str, seen: Seen, batch: Batch, full_vocab: bool = False) -> Any:
        """What a method of the head gives for every position that counts, [B, T]."""
        if seen[1] is not None:
            return self._point(method, seen[0], batch.targets, seen[1])
        states, targets, counts = map(self._tokens, (seen[0], batch.targets, batch.weights > 0))
        found = self.head.per_token(method, states, targets, self._tied_table(), counts, full_vocab)
        return jax.tree.map(lambda x: self._rows(x, batch.targets.shape), found)

    def _point(self, method: str, *arrays: jax.Array) -> jax.Array:
        """A method of the head row by row, where each row has a table of its own."""
        rows = nn.vmap(
            lambda head, *row: getattr(head, method)(*row),
            variable_axes={"params": None},
            split_rngs={"params": False, "softmax": True},
        )
        return rows(self.head, *arrays)

    def _where(self, batch: Batch) -> dict[str, jax.Array]:
        """Of a head that sees rows, the positions that are there."""
        return {"where": batch.weights > 0} if self.head.sequence_level else {}

    def _tokens(self, x: jax.Array) -> jax.Array:
        """[B, L, ...] to [B L, ...], unless the head wants rows. In the order of the devices that
        have them, if the head splits its work as they do.
        """
        if self.head.sequence_level:
            return x
        parts = self._position_parts(x.shape[1])
        x = x.reshape(x.shape[0], parts, -1, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(-1, *x.shape[3:])

    def _rows(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `_tokens`, of rows [B, L]."""
        if self.head.sequence_level:
            return x
        parts = self._position_parts(shape[1])
        x = x.reshape(parts, shape[0], -1, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(*shape, *x.shape[3:])

    def _position_parts(self, length: int) -> int:
        """How many parts of a row's positions are on different devices, for the head."""
        # What a random head draws depends on a token's place among all.
        parts = sequence_parts() if self.head.vocab_shardable and not self.head.random else 1
        return parts if length % parts == 0 else 1

    def _tied_table(self) -> jax.Array | None:
        return self.embedding if self.config.head.tied else None
