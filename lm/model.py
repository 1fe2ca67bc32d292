"""What maps tokens to hidden states, a loss and a distribution? The Transformer: a decoder, an
encoder, or both, out of the same blocks, with an output head of `lm.output.OUTPUTS` on top.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.attention import ATTENTIONS, Mask
from lm.attention.positions import sinusoids
from lm.layers import Stack
from lm.output import OUTPUTS

ARCHITECTURES = ("decoder", "encoder", "encoder_decoder")
POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "none")


@flax.struct.dataclass
class Batch:
    """What one step learns from; B rows of L positions.

    Attributes:
      inputs: [B, L] token ids.
      targets: [B, L] token ids to predict at each position.
      weights: [B, L], how much each position counts in the loss; 0 at padding.
      segments: [B, L], the document of each position, 0 at padding.
      positions: [B, L], places within the documents.
      memory_inputs, memory_segments, memory_positions: [B, S], the same of the encoder's side of
        an encoder-decoder; document i there belongs to document i here.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array
    segments: jax.Array
    positions: jax.Array
    memory_inputs: jax.Array | None = None
    memory_segments: jax.Array | None = None
    memory_positions: jax.Array | None = None


class Transformer(nn.Module):
    """A Transformer with a swappable softmax inside (attention) and on top (output).

    Attributes:
      vocab_size: V.
      attention: the config's group: mechanism, weighting, its options, block.
      output: the config's group: head, tied, and the head's options.
      The others are the config's group `model`, documented in configs/default.py.
    """

    vocab_size: int
    attention: Mapping[str, Any]
    output: Mapping[str, Any]
    architecture: str
    layers: int
    features: int
    heads: int
    kv_heads: int | None
    head_size: int | None
    hidden: int | None
    activation: str
    bias: bool
    norm: str
    norm_position: str
    positions: str
    max_length: int
    qk_norm: bool
    dropout: float
    init_scale: float
    depth_scaled_init: bool
    dtype: str
    param_dtype: str
    remat: bool
    scan: bool

    def setup(self) -> None:
        """Makes the parts: word table, positions, stacks and head."""
        normal = nn.initializers.normal
        dtypes = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        self.embedding = self.param(
            "embedding",
            normal(self.init_scale),
            (self.vocab_size, self.features),
            dtypes["param_dtype"],
        )
        if self.positions == "learned":
            self.position_embedding = self.param(
                "position_embedding",
                normal(self.init_scale),
                (self.max_length, self.features),
                dtypes["param_dtype"],
            )
        self.embedding_dropout = nn.Dropout(self.dropout)
        stack = {
            "layers": self.layers,
            "block": self._block(dtypes),
            "scan": self.scan,
            "remat": self.remat,
        }
        if self.architecture == "encoder_decoder":
            self.encoder = Stack(**stack)
        self.stack = Stack(**stack)
        options = dict(self.output)
        head, self.tied = OUTPUTS[options.pop("head")], options.pop("tied")
        self.head = head(
            self.vocab_size, self.features, table_init=normal(self.init_scale), **dtypes, **options
        )

    def _block(self, dtypes: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of `Block`, from the config's groups."""
        normal = nn.initializers.normal
        depth = (2 * self.layers) ** -0.5 if self.depth_scaled_init else 1.0
        inits = {
            "kernel_init": normal(self.init_scale),
            "out_init": normal(self.init_scale * depth),
        }
        options = dict(self.attention)
        mechanism = ATTENTIONS[options.pop("mechanism")](**options)
        attention = {
            "heads": self.heads,
            "kv_heads": self.kv_heads or self.heads,
            "head_size": self.head_size or self.features // self.heads,
            "mechanism": mechanism,
            "positions": self.positions,
            "qk_norm": self.qk_norm,
            "bias": self.bias,
            **inits,
            **dtypes,
        }
        feed_forward = {
            "hidden": self.hidden or 4 * self.features,
            "activation": self.activation,
            "bias": self.bias,
            **inits,
            **dtypes,
        }
        return {
            "attention": attention,
            "feed_forward": feed_forward,
            "norm": self.norm,
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
          batch: the tokens; its targets are not looked at.
          train: dropout is on (needs an rng named "dropout").
          offset, padding, cache_length: for decoding with a cache: where these tokens stand among
            the cache's keys, which keys are real ([B, cache_length]), and how many it holds.
        """
        memory, memory_mask = None, Mask()
        if self.architecture == "encoder_decoder":
            assert batch.memory_inputs is not None and batch.memory_positions is not None
            memory = self.encoder(
                self._embed(batch.memory_inputs, batch.memory_positions, train),
                batch.memory_positions,
                Mask(segments=batch.memory_segments),
                train=train,
            )
            memory_mask = Mask(segments=batch.segments, key_segments=batch.memory_segments)
        mask = Mask(causal=self.architecture != "encoder", segments=batch.segments)
        if cache_length is not None:
            mask = dataclasses.replace(mask, segments=None, offset=offset, padding=padding)
        x = self._embed(batch.inputs, batch.positions, train)
        return self.stack(x, batch.positions, mask, memory, memory_mask, train, cache_length)

    def _embed(self, tokens: jax.Array, positions: jax.Array, train: bool) -> jax.Array:
        x = self.embedding[tokens]
        if self.positions == "learned":
            x += self.position_embedding[positions]
        elif self.positions == "sinusoidal":
            x += sinusoids(positions, self.features).astype(x.dtype)
        return self.embedding_dropout(x.astype(self.dtype), deterministic=not train)

    def loss(self, batch: Batch, train: bool = True, step: jax.Array | None = None) -> jax.Array:
        """Training loss in nats, summed over the batch's positions with their weights.

        `step`, of training, is for heads whose loss follows a schedule.
        """
        arrays = (self(batch, train), batch.targets, batch.weights)
        return self.head.total(*map(self._tokens, arrays), self._tied_table(), step)

    def negative_log_likelihood(self, batch: Batch) -> jax.Array:
        """-log p(target) per position in nats, [B, L]: what evaluation reports."""
        arrays = (self(batch), batch.targets)
        options = {"where": batch.weights > 0} if self.head.whole_rows else {}
        nats = self.head.likelihoods(*map(self._tokens, arrays), self._tied_table(), **options)
        return nats.reshape(batch.targets.shape)

    def support_metrics(self, batch: Batch) -> dict[str, jax.Array]:
        """Of a head without full support, measures per position, [B, L], that need none."""
        arrays = (self._tokens(self(batch)), self._tokens(batch.targets))
        found = self.head.in_chunks("support_metrics", *arrays, self._tied_table())
        return {name: value.reshape(batch.targets.shape) for name, value in found.items()}

    def log_probs(self, batch: Batch, **decoding: Any) -> jax.Array:
        """Log-probabilities [B, L, V] in nats; `decoding` as in `__call__`."""
        hidden = self(batch, **decoding)
        flat = self.head.log_probs(self._tokens(hidden), self._tied_table())
        return flat.reshape(*hidden.shape[:2], -1)

    def _tokens(self, x: jax.Array) -> jax.Array:
        """[B, L, ...] to [B L, ...], unless the head wants rows."""
        return x if self.head.whole_rows else x.reshape(-1, *x.shape[2:])

    def _tied_table(self) -> jax.Array | None:
        return self.embedding if self.tied else None
