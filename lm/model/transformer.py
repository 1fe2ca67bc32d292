"""What maps tokens to hidden states, a loss and a distribution? The Transformer: a decoder, an
encoder, or both, out of the same blocks, with an output head of `lm.output.OUTPUTS` on top.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import ATTENTIONS, Mask
from lm.model.batch import Batch
from lm.model.embedding import Embedding
from lm.model.layers import HeadTransform, Pooler, Stack
from lm.model.pooling import READOUTS, Seen
from lm.output import OUTPUTS

ARCHITECTURES = ("decoder", "encoder", "encoder_decoder")
POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "relative", "none")


class Transformer(nn.Module):
    """A Transformer with a swappable softmax inside (attention) and on top (output).

    Attributes:
      vocab_size: V.
      attention: the config's group: mechanism, weighting, its options, block.
      encoder_attention, cross_attention: likewise, of an encoder-decoder's encoder and of its
        decoder's attention to it; None: as `attention`.
      output: the config's group: head, tied, and the head's options.
      readout: which hidden states the head sees: a name of `lm.model.pooling.READOUTS`.
      num_classes: how many things it chooses among; 0: the words.
      The others are the config's group `model`, documented in configs/default.py.
    """

    vocab_size: int
    attention: Mapping[str, Any]
    output: Mapping[str, Any]
    architecture: str
    num_layers: int
    d_model: int
    embedding_dim: int | None
    embedding_norm: bool
    embedding_scale: float
    num_token_types: int
    num_heads: int
    num_kv_heads: int | None
    head_dim: int | None
    mlp_dim: int | None
    activation: str
    bias: bool
    qkv_bias: bool | None
    norm: str
    norm_position: str
    norm_eps: float
    position_embedding: str
    max_seq_len: int
    rope_theta: float
    relative_num_buckets: int
    relative_max_distance: int
    score_scale: float | None
    qk_norm: bool
    share_layers: bool
    head_transform: bool
    pooler: bool
    dropout: float
    init_std: float
    depth_scaled_init: bool
    dtype: str
    param_dtype: str
    remat: bool
    scan: bool
    encoder_attention: Mapping[str, Any] | None = None
    cross_attention: Mapping[str, Any] | None = None
    readout: str = "all_positions"
    num_classes: int = 0

    def setup(self) -> None:
        """Makes the parts: word table, embeddings, stacks and head."""
        normal = nn.initializers.normal(self.init_std)
        dtypes = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        self.embedding = self.param(
            "embedding",
            normal,
            (self.vocab_size, self.embedding_dim or self.d_model),
            dtypes["param_dtype"],
        )
        norm: dict[str, Any] = {"norm": self.norm, "epsilon": self.norm_eps}
        inits: dict[str, Any] = {"kernel_init": normal, **dtypes}
        embedding = {
            "d_model": self.d_model,
            "position_embedding": self.position_embedding,
            "max_seq_len": self.max_seq_len,
            "num_token_types": self.num_token_types,
            "scale": self.embedding_scale,
            **(norm if self.embedding_norm else norm | {"norm": None}),
            "dropout": self.dropout,
            "table_init": normal,
            **dtypes,
        }
        stack = {
            "num_layers": self.num_layers,
            "position_embedding": self.position_embedding,
            "buckets": self.relative_num_buckets,
            "farthest": self.relative_max_distance,
            "share": self.share_layers,
            "scan": self.scan,
            "remat": self.remat,
        }
        cross = None
        if self.architecture == "encoder_decoder":
            self.encoder_inputs = Embedding(**embedding)
            own = self.encoder_attention or self.attention
            self.encoder = Stack(block=self._block(dtypes, own), **stack)
            cross = self.cross_attention or self.attention
        self.inputs = Embedding(**embedding)
        self.stack = Stack(block=self._block(dtypes, self.attention, cross), **stack)
        if self.head_transform:
            self.transform = HeadTransform(self._head_features, self.activation, **norm, **inits)
        if self.pooler:
            self.pool = Pooler(**inits)
        self.tied = self.output["tied"]
        self.read = READOUTS[self.readout](
            self.d_model, nn.initializers.normal(self.init_std), dtypes["param_dtype"]
        )
        self.head = self.output_head()

    @property
    def _head_features(self) -> int:
        """Width of what the head sees: a transform leads back to the embedding's."""
        return (self.head_transform and self.embedding_dim) or self.d_model

    @nn.nowrap  # so that it can be asked for outside `apply` too
    def output_head(self) -> Any:
        """The head that the config's group describes."""
        options = {k: v for k, v in self.output.items() if k not in ("head", "tied")}
        features = self._head_features if self.readout == "all_positions" else self.d_model
        return OUTPUTS[self.output["head"]](
            self.num_classes or self.vocab_size,
            features + READOUTS[self.readout].extra,
            table_init=nn.initializers.normal(self.init_std),
            dtype=jnp.dtype(self.dtype),
            param_dtype=jnp.dtype(self.param_dtype),
            **options,
        )

    def _block(
        self,
        dtypes: dict[str, Any],
        attention: Mapping[str, Any],
        cross: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Keyword arguments of `Block`, from the config's groups."""
        normal = nn.initializers.normal
        depth = (2 * self.num_layers) ** -0.5 if self.depth_scaled_init else 1.0
        inits = {
            "kernel_init": normal(self.init_std),
            "out_init": normal(self.init_std * depth),
        }
        heads = {
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads or self.num_heads,
            "head_dim": self.head_dim or self.d_model // self.num_heads,
            "rope_theta": self.rope_theta if self.position_embedding == "rotary" else None,
            "score_scale": self.score_scale,
            "qk_norm": self.qk_norm,
            "bias": self.bias if self.qkv_bias is None else self.qkv_bias,
            "out_bias": self.bias,
            **inits,
            **dtypes,
        }

        def layer(group: Mapping[str, Any]) -> dict[str, Any]:
            options = dict(group)
            # Built by each layer: one module for all would share its parameters among them.
            mechanism = functools.partial(ATTENTIONS[options.pop("mechanism")], **options)
            return {"mechanism": mechanism, **heads}

        feed_forward = {
            "mlp_dim": self.mlp_dim or 4 * self.d_model,
            "activation": self.activation,
            "bias": self.bias,
            **inits,
            **dtypes,
        }
        return {
            "attention": layer(attention),
            "cross_attention": None if cross is None else layer(cross),
            "feed_forward": feed_forward,
            "norm": self.norm,
            "epsilon": self.norm_eps,
            "norm_position": self.norm_position,
            "dropout": self.dropout,
            **dtypes,
        }

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
        if self.architecture == "encoder_decoder":
            places: Any = {"positions": batch.positions, "key_positions": batch.encoder_positions}
            memory_mask = Mask(
                segments=batch.segments, key_segments=batch.encoder_segments, **places
            )
        if batch.encoder_inputs is not None:
            words, positions = self.embedding[batch.encoder_inputs], batch.encoder_positions
            assert positions is not None
            inputs = self.encoder_inputs(words, positions, None, train)
            memory = self.encoder(
                inputs, positions, Mask(segments=batch.encoder_segments), train=train
            )
        causal = self.architecture != "encoder"
        mask = Mask(causal=causal, segments=batch.segments, prefix=batch.prefix)
        if cache_length is not None:
            mask = dataclasses.replace(mask, segments=None, offset=offset, padding=padding)
        words = self.embedding[batch.inputs]
        x = self.inputs(words, batch.positions, batch.token_types, train)
        return self.stack(x, batch.positions, mask, memory, memory_mask, train, cache_length)

    def pooled(self, batch: Batch, train: bool = False) -> jax.Array:
        """A vector for each row, [B, D], of a model that has a pooler."""
        return self.pool(self(batch, train))

    def head_inputs(self, batch: Batch, train: bool = False, **decoding: Any) -> jax.Array:
        """The hidden states that the head reads, [B, L, D], or [B, L, E] behind a transform."""
        hidden = self(batch, train, **decoding)
        if self.pooler and self.is_initializing():
            self.pool(hidden)
        transforms = self.head_transform and self.readout == "all_positions"
        return self.transform(hidden) if transforms else hidden

    def loss(self, batch: Batch, train: bool = True, step: jax.Array | None = None) -> jax.Array:
        """Training loss in nats, summed over the batch's positions with their weights.

        `step`, of training, is for heads whose loss follows a schedule.
        """
        return self.loss_of(self.states(batch, train), batch, step)

    def loss_of(self, seen: Seen, batch: Batch, step: jax.Array | None = None) -> jax.Array:
        """The training loss of what the head sees."""
        states, table = seen
        if table is not None:
            return jnp.sum(self._point("loss", states, batch.targets, table) * batch.weights)
        arrays = (states, batch.targets, batch.weights)
        return self.head.total(*map(self._tokens, arrays), self._tied_table(), step)

    def negative_log_likelihood(self, batch: Batch) -> jax.Array:
        """-log p(target) in nats, [B, L], of the positions that count: what evaluation reports."""
        return self._each("negative_log_likelihood", self.states(batch), batch)

    def measures(self, batch: Batch, accuracy: bool = False) -> dict[str, jax.Array]:
        """Evaluation's, each [B, L]: "nats", "accuracy" if asked for, and `support_metrics`."""
        seen = self.states(batch)
        found = {"nats": self._each("negative_log_likelihood", seen, batch)}
        if accuracy:
            found["accuracy"] = self._each("hits", seen, batch, whole=True)
        if not self.head.full_support:
            found |= self._each("support_metrics", seen, batch)
        return found

    def predictions(self, batch: Batch) -> dict[str, jax.Array]:
        """What a task is judged by, [B, T, ...]: "nats" of the targets and "log_probs" of all
        classes, or "hits" where these are words; of real targets, "values"; and "best" where the
        likeliest row of targets is not that of the likeliest targets.
        """
        seen = self.states(batch)
        found = {"nats": self._each("negative_log_likelihood", seen, batch)}
        real = jnp.issubdtype(batch.targets.dtype, jnp.floating)
        if real or self.num_classes:
            found["values" if real else "log_probs"] = self.head_outputs(seen, batch)
        else:
            found["hits"] = self._each("hits", seen, batch, whole=True)
        if self.head.whole_rows:
            found["best"] = self.head.best(seen[0], self._tied_table(), **self._where(batch))
        return found

    def head_outputs(self, seen: Seen, batch: Batch) -> jax.Array:
        """Log-probabilities [B, T, V] of what the head sees; of real targets, values [B, T]."""
        states, table = seen
        if jnp.issubdtype(batch.targets.dtype, jnp.floating):
            return self.head.values(self._tokens(states)).reshape(batch.targets.shape)
        if table is not None:
            return self._point("log_probs", states, table)
        flat = self.head.log_probs(self._tokens(states), self._tied_table(), **self._where(batch))
        return flat.reshape(*batch.targets.shape, -1)

    def log_probs(self, batch: Batch, **decoding: Any) -> jax.Array:
        """Log-probabilities [B, L, V] in nats; `decoding` as in `__call__`."""
        hidden = self.head_inputs(batch, **decoding)
        flat = self.word_log_probs(self._tokens(hidden))
        return flat.reshape(*hidden.shape[:2], -1)

    def word_log_probs(self, hidden: jax.Array) -> jax.Array:
        """Log-probabilities [N, V] in nats of hidden states [N, D]."""
        return self.head.log_probs(hidden, self._tied_table())

    def draw_words(self, hidden: jax.Array, key: jax.Array) -> jax.Array:
        """Words [N] drawn from the head's distribution at hidden states [N, D]."""
        return self.head.sample(hidden, key, self._tied_table())

    def states(self, batch: Batch, train: bool = False) -> Seen:
        """What the head sees, [B, T, D], and what it chooses among where that is no own table."""
        batch = self.read.flat(batch)
        return self.read(self.head_inputs(batch, train), batch)

    def _each(self, method: str, seen: Seen, batch: Batch, whole: bool = False) -> Any:
        """What a method of the head gives for every position that counts, [B, T]."""
        if seen[1] is not None:
            return self._point(method, seen[0], batch.targets, seen[1])
        states, targets, counts = map(self._tokens, (seen[0], batch.targets, batch.weights > 0))
        found = self.head.per_token(method, states, targets, self._tied_table(), counts, whole)
        return jax.tree.map(lambda x: x.reshape(batch.targets.shape), found)

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
        return {"where": batch.weights > 0} if self.head.whole_rows else {}

    def _tokens(self, x: jax.Array) -> jax.Array:
        """[B, L, ...] to [B L, ...], unless the head wants rows."""
        return x if self.head.whole_rows else x.reshape(-1, *x.shape[2:])

    def _tied_table(self) -> jax.Array | None:
        return self.embedding if self.tied else None
