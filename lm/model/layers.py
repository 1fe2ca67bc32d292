"""What is a Transformer block made of, besides attention? Norms, the feed-forward layer, and the
residual around each; one `Block` serves encoders and decoders.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention import Mask
from lm.attention.positions import Buckets, Slopes, alibi_slopes
from lm.devices.cpu import dense_product, fusion_barrier
from lm.model.multihead import MultiHeadAttention
from lm.model.norms import NORMS


def gelu_exact(x: jax.Array) -> jax.Array:
    """GELU: x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, Phi of the normal distribution (1606.08415).

    Computed in float32 at least. `jax.nn.gelu` takes erfc(-x / sqrt 2), relatively exact where x is
    far below 0 and 3 times as slow on a CPU; here the error is absolute, within 2e-7 of |x|.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu_exact": gelu_exact,
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
}
GATED = ("swiglu", "geglu")
NORM_POSITIONS = ("pre", "post", "sandwich")


class FeedForward(nn.Module):
    """act(x W_in) W_out, or (act(x W_gate) * x W_in) W_out for the gated kinds (2002.05202).

    Attributes:
      mlp_dim: the inner width.
      activation: a name of `ACTIVATIONS`.
    """

    mlp_dim: int
    activation: str
    bias: bool
    kernel_init: Any
    out_init: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        act = ACTIVATIONS[self.activation]
        inner = fusion_barrier(self._dense("in", self.mlp_dim, self.kernel_init)(x))
        # Only the inputs of the activation are kept for the backward pass.
        if self.activation in GATED:
            gate = fusion_barrier(self._dense("gate", self.mlp_dim, self.kernel_init)(x))
            inner = jax.checkpoint(lambda gate, inner: act(gate) * inner)(gate, inner)
        else:
            inner = jax.checkpoint(act)(inner)
        inner = fusion_barrier(inner)
        return self._dense("out", x.shape[-1], self.out_init)(inner)

    def _dense(self, name: str, features: int, kernel_init: Any) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=self.bias,
            kernel_init=kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            dot_general=dense_product,
            name=name,
        )


class Block(nn.Module):
    """Self-attention, cross-attention if asked for, and feed-forward, each in a residual.

    Attributes:
      attention: keyword arguments of `MultiHeadAttention`.
      cross_attention: likewise, of attention to an encoder's output; None: there is none.
      feed_forward: keyword arguments of `FeedForward`.
      norm: a name of `NORMS`; normalises in float32.
      epsilon: of the norms.
      norm_position: "pre" x + f(norm(x)); "post" norm(x + f(x)); "sandwich"
        x + norm(f(norm(x))) (2105.13290).
      dropout: rate on each residual branch.
    """

    attention: Any
    cross_attention: Any
    feed_forward: Any
    norm: str
    epsilon: float
    norm_position: str
    dropout: float
    dtype: Any
    param_dtype: Any

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
        position_bias: Any = None,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D].

        `memory` [B, S, D] is the encoder's output for a decoder; None where its keys are cached.
        """
        attention = MultiHeadAttention(**self.attention, name="attention")
        x = self._residual(
            "attention",
            x,
            lambda y: attention(y, positions, mask, None, cache_length, position_bias),
            train,
        )
        if self.cross_attention is not None:
            cross = MultiHeadAttention(**self.cross_attention, cross=True, name="cross_attention")
            x = self._residual(
                "cross_attention",
                x,
                lambda y: cross(y, positions, memory_mask, memory, cache_length),
                train,
            )
        return self._residual(
            "feed_forward", x, FeedForward(**self.feed_forward, name="feed_forward"), train
        )

    def _residual(self, name: str, x: jax.Array, branch: Any, train: bool) -> jax.Array:
        y = x if self.norm_position == "post" else self._norm(f"{name}_norm")(x)
        y = branch(y)
        if self.norm_position == "sandwich":
            y = self._norm(f"{name}_out_norm")(y)
        y = fusion_barrier(x + nn.Dropout(self.dropout, deterministic=not train)(y))
        return self._norm(f"{name}_norm")(y) if self.norm_position == "post" else y

    def _norm(self, name: str) -> nn.Module:
        return NORMS[self.norm](self.dtype, self.param_dtype, self.epsilon, name=name)


class Stack(nn.Module):
    """`num_layers` blocks of one kind, scanned (compile time does not grow with depth) or unrolled.

    A norm closes a pre-norm or sandwich stack. What distances add to scores is the same in every
    layer.

    Attributes:
      num_layers: their number.
      block: keyword arguments of `Block`.
      position_embedding: "alibi" and "relative" are added to scores here; the others are not its
        matter.
      buckets, farthest: of relative positions; see `Buckets`.
      share: all layers have the same parameters (ALBERT, 1909.11942); always scanned.
      scan: stacks the layers' parameters along a leading axis and scans over it.
      remat: recomputes each block in the backward pass.
    """

    num_layers: int
    block: Any
    position_embedding: str
    buckets: int
    farthest: int
    share: bool
    scan: bool
    remat: bool

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
        kind: Any = Block
        if self.remat:
            # Arguments 6 and 7 (self is 0) are the Python values train and cache_length.
            scanned = self.scan or self.share
            kind = nn.remat(Block, static_argnums=(6, 7), prevent_cse=not scanned)
        bias = self._position_bias(mask.causal)
        arguments = (positions, mask, memory, memory_mask, train, cache_length, bias)
        if not (self.scan or self.share):
            for layer in range(self.num_layers):
                x = kind(**self.block, name=f"layer_{layer}")(x, *arguments)
        else:
            axes: Any = {"cache": 0, "intermediates": 0}
            scanned = nn.scan(
                lambda block, carry, _: (block(carry, *arguments), None),
                variable_axes=axes if self.share else axes | {"params": 0},
                variable_broadcast="params" if self.share else False,
                split_rngs={"params": not self.share, "dropout": True, "softmax": True},
                length=self.num_layers,
            )
            name = "shared_layer" if self.share else "layers"
            x, _ = scanned(kind(**self.block, name=name), x, None)
        if self.block["norm_position"] != "post":
            options = (self.block[key] for key in ("dtype", "param_dtype", "epsilon"))
            x = NORMS[self.block["norm"]](*options, name="final_norm")(x)
        return x

    def _position_bias(self, causal: bool) -> Slopes | Buckets | None:
        heads = self.block["attention"]["num_heads"]
        if self.position_embedding == "alibi":
            return Slopes(jnp.asarray(alibi_slopes(heads)))
        if self.position_embedding == "relative":
            init, dtype = nn.initializers.normal(0.02), self.block["param_dtype"]
            table = self.param("relative_position", init, (self.buckets, heads), dtype)
            return Buckets(table, self.farthest, causal)
        return None


class HeadTransform(nn.Module):
    """norm(act(h W + b)): what BERT puts between the stack and the head (1810.04805).

    Attributes:
      d_model: E, of the result.
      activation: a name of `ACTIVATIONS` that is not gated.
      norm, epsilon: as of `Block`.
    """

    d_model: int
    activation: str
    norm: str
    epsilon: float
    kernel_init: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, E]."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        inits = {"kernel_init": self.kernel_init, "dot_general": dense_product}
        dense = nn.Dense(self.d_model, name="in", **inits, **dtypes)
        x = ACTIVATIONS[self.activation](dense(hidden))
        return NORMS[self.norm](epsilon=self.epsilon, name="norm", **dtypes)(x)


class Pooler(nn.Module):
    """tanh(h_0 W + b), h_0 of a row's first position: BERT's vector of a whole row (1810.04805)."""

    kernel_init: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, D]."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = nn.Dense(hidden.shape[-1], kernel_init=self.kernel_init, name="dense", **dtypes)
        return jnp.tanh(dense(hidden[:, 0]))
