"""The parts of a Transformer besides attention: blocks of attention and a feed-forward layer, each
in a residual with its norm, stacks of blocks, and what stands between a stack and the head.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import Mask
from lm.attention.positions import AlibiBias, RelativeBias, alibi_slopes
from lm.devices.platform import PORTABLE, platform
from lm.devices.sharding import split_positions
from lm.model.activations import ACTIVATIONS, GATED
from lm.model.config import BlockConfig, FeedForwardConfig, Numerics, StackConfig, TransformConfig
from lm.model.multihead import MultiHeadAttention


class FeedForward(nn.Module):
    """act(x W_in) W_out, or (act(x W_gate) * x W_in) W_out for the gated kinds (2002.05202).

    Attributes:
      config: its sizes and parts.
    """

    config: FeedForwardConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        config, numerics = self.config, self.config.numerics
        act = ACTIVATIONS[config.activation]
        inner = numerics.dense(config.mlp_dim, "in", config.bias)(x)
        # Only the inputs of the activation are kept for the backward pass.
        if config.activation in GATED:
            gate = numerics.dense(config.mlp_dim, "gate", config.bias)(x)
            inner = jax.checkpoint(lambda gate, inner: act(gate) * inner)(gate, inner)
        else:
            inner = jax.checkpoint(act)(inner)
        return numerics.dense(x.shape[-1], "out", config.bias, config.out_init_std)(inner)


class Block(nn.Module):
    """Self-attention, cross-attention if asked for, and feed-forward, each in a residual.

    With a norm_position "pre" x + f(norm(x)); "post" norm(x + f(x)); "sandwich"
    x + norm(f(norm(x))) (2105.13290).

    Attributes:
      config: its parts.
    """

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: Mask,
        memory: jax.Array | None,
        memory_mask: Mask,
        train: bool,
        cache_length: int | None,
        position_bias: AlibiBias | RelativeBias | None = None,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D].

        `memory` [B, S, D] is the encoder's output for a decoder; None where its keys are cached.
        """
        x = split_positions(x)
        attention = MultiHeadAttention(self.config.attention, name="attention")
        arguments = (positions, mask, None, cache_length, position_bias)
        x = self._residual("attention", x, train, attention, *arguments)
        if self.config.cross_attention is not None:
            cross = MultiHeadAttention(self.config.cross_attention, name="cross_attention")
            arguments = (positions, memory_mask, memory, cache_length)
            x = self._residual("cross_attention", x, train, cross, *arguments)
        feed_forward = FeedForward(self.config.feed_forward, name="feed_forward")
        return self._residual("feed_forward", x, train, feed_forward)

    def _residual(
        self, name: str, x: jax.Array, train: bool, branch: nn.Module, *arguments: Any
    ) -> jax.Array:
        """One residual: `branch` takes the normalised x and the arguments."""
        config = self.config
        y = x if config.norm_position == "post" else config.norm.build(f"{name}_norm")(x)
        y = branch(y, *arguments)
        if config.norm_position == "sandwich":
            y = config.norm.build(f"{name}_out_norm")(y)
        y = x + nn.Dropout(config.dropout, deterministic=not train)(y)
        return config.norm.build(f"{name}_norm")(y) if config.norm_position == "post" else y


class Stack(nn.Module):
    """`num_layers` blocks of one kind, scanned (compile time does not grow with depth) or unrolled.

    A norm closes a pre-norm or sandwich stack. What distances add to scores is the same in every
    layer.

    Attributes:
      config: the blocks, their number, and how they are run. Shared layers (ALBERT, 1909.11942) are
        always scanned, but in programs for others; a scan stacks the layers' parameters along a
        leading axis.
    """

    config: StackConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: Mask,
        memory: jax.Array | None = None,
        memory_mask: Mask = Mask(),  # noqa: B008 (frozen)
        train: bool = False,
        cache_length: int | None = None,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        config, kind = self.config, Block
        if config.remat:
            # Arguments 6 and 7 (self is 0) are the Python values train and cache_length.
            kind = nn.remat(Block, static_argnums=(6, 7), prevent_cse=not config.scanned)
        bias = self._position_bias(mask.causal)
        arguments = (positions, mask, memory, memory_mask, train, cache_length, bias)
        if not config.scanned:
            for layer in range(config.num_layers):
                x = kind(config.block, name=f"layer_{layer}")(x, *arguments)
        elif config.share_layers and platform() == PORTABLE:
            shared = kind(config.block, name="shared_layer")
            for _ in range(config.num_layers):
                x = shared(x, *arguments)
        else:
            axes: Any = {"cache": 0, "written": 0, "intermediates": 0}
            share = config.share_layers
            scanned = nn.scan(
                lambda block, carry, _: (block(carry, *arguments), None),
                variable_axes=axes if share else axes | {"params": 0},
                variable_broadcast="params" if share else False,
                split_rngs={"params": not share, "dropout": True, "softmax": True},
                length=config.num_layers,
            )
            x, _ = scanned(kind(config.block, name="shared_layer" if share else "layers"), x, None)
        if config.block.norm_position != "post":
            x = config.block.norm.build("final_norm")(x)
        return x

    def _position_bias(self, causal: bool) -> AlibiBias | RelativeBias | None:
        config, attention = self.config, self.config.block.attention
        if config.position_embedding == "alibi":
            return AlibiBias(jnp.asarray(alibi_slopes(attention.num_heads)))
        if config.position_embedding == "relative":
            shape = (config.relative_num_buckets, attention.num_heads)
            init, dtypes = nn.initializers.normal(0.02), attention.numerics.dtypes
            table = self.param("relative_position", init, shape, dtypes["param_dtype"])
            return RelativeBias(table, config.relative_max_distance, causal)
        return None


class HeadTransform(nn.Module):
    """norm(act(h W + b)): what BERT puts between the stack and the head (1810.04805).

    Attributes:
      config: its width and parts; the activation is not gated.
    """

    config: TransformConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, E]."""
        config = self.config
        dense = config.numerics.dense(config.embedding_dim, "in")
        return config.norm.build("norm")(ACTIVATIONS[config.activation](dense(hidden)))


class Pooler(nn.Module):
    """tanh(h_0 W + b), h_0 of a row's first position: BERT's vector of a whole row (1810.04805)."""

    numerics: Numerics

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, D]."""
        own = self.numerics
        dense = nn.Dense(hidden.shape[-1], kernel_init=own.init, name="dense", **own.dtypes)
        return jnp.tanh(dense(hidden[:, 0]))
