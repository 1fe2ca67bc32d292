"""Types the part of a config that describes the model, one frozen dataclass for each module.

A new key of the model is a line in configs/default.py and a field here; `lm.model.resolve` computes
the sizes that follow from others.
"""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp

from lm.attention import ATTENTIONS
from lm.attention.gated import GATES
from lm.attention.norms import NORMS
from lm.config import Key, keys, keys_within
from lm.devices.cpu import dense_product
from lm.model.activations import ACTIVATIONS
from lm.output import OUTPUTS
from lm.output.sampled import DISTRIBUTIONS
from lm.output.sharded import Shards
from lm.softmax import WEIGHTINGS

ARCHITECTURES = ("decoder", "encoder", "encoder_decoder")
POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "relative", "none")
NORM_POSITIONS = ("pre", "post", "sandwich")
DTYPES = ("float32", "bfloat16")

Options = tuple[tuple[str, Any], ...]  # names and values
# Keys that more than one module reads.
Width = Annotated[int, Key("model.d_model", at_least=1)]
Dropout = Annotated[float, Key("model.dropout", at_least=0, below=1)]
PositionEmbedding = Annotated[str, Key("model.position_embedding", one_of=POSITIONS)]


@dataclasses.dataclass(frozen=True)
class Numerics:
    """The types of a module's numbers, and the spread of its initial weights."""

    dtype: Annotated[str, Key("model.dtype", one_of=DTYPES)]
    param_dtype: Annotated[str, Key("model.param_dtype", one_of=DTYPES)]
    init_std: Annotated[float, Key("model.init_std", at_least=0)]

    @property
    def dtypes(self) -> dict[str, Any]:
        """Of computation and of parameters, as keyword arguments of a module."""
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}

    @property
    def init(self) -> nn.initializers.Initializer:
        """The initialiser of weights."""
        return nn.initializers.normal(self.init_std)

    def dense(
        self, features: int, name: str, use_bias: bool = True, init_std: float | None = None
    ) -> nn.Dense:
        """A linear layer, whose initial weights may have another spread."""
        init = self.init if init_std is None else nn.initializers.normal(init_std)
        options = {"kernel_init": init, "dot_general": dense_product, **self.dtypes}
        return nn.Dense(features, use_bias=use_bias, name=name, **options)


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """A norm of `NORMS`."""

    norm: Annotated[str, Key("model.norm", one_of=NORMS)]
    norm_eps: Annotated[float, Key("model.norm_eps", above=0)]
    numerics: Numerics

    def build(self, name: str) -> nn.Module:
        """The module."""
        return NORMS[self.norm](epsilon=self.norm_eps, name=name, **self.numerics.dtypes)


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """What enters a stack; `norm` is None where the sum is not normalised."""

    d_model: Width
    embedding_dim: Annotated[int, Key("model.embedding_dim", at_least=1)]
    embedding_scale: Annotated[float, Key("model.embedding_scale")]
    num_token_types: Annotated[int, Key("model.num_token_types", at_least=0)]
    position_embedding: PositionEmbedding
    max_seq_len: Annotated[int, Key("model.max_seq_len", at_least=1)]
    dropout: Dropout
    norm: NormConfig | None
    numerics: Numerics


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """One kind of attention: its projections, its mechanism, and the mechanism's weighting.

    `bias` is that of queries, keys and values, `rope_theta` None where positions turn nothing.
    `options` are the mechanism's own, `weighting_options` its weighting's.
    """

    num_heads: Annotated[int, Key("model.num_heads", at_least=1, below=65_537)]
    num_kv_heads: Annotated[int, Key("model.num_kv_heads", at_least=1, below=65_537)]
    head_dim: Annotated[int, Key("model.head_dim", at_least=1)]
    rope_theta: Annotated[float | None, Key("model.rope_theta", above=0)]
    score_scale: Annotated[float | None, Key("model.score_scale", above=0)]
    qk_norm: Annotated[bool, Key("model.qk_norm")]
    bias: Annotated[bool, Key("model.qkv_bias")]
    out_bias: Annotated[bool, Key("model.bias")]
    mechanism: Annotated[str, Key("attention.mechanism", one_of=ATTENTIONS)]
    weighting: Annotated[str, Key("attention.weighting", one_of=WEIGHTINGS)]
    query_chunk_size: Annotated[int | None, Key("attention.query_chunk_size", at_least=0)]
    learn: Annotated[tuple[str, ...], Key("attention.learn")]
    anneal: Annotated[tuple[Any, ...], Key("attention.anneal")]
    weighting_options: Options
    options: Options
    cross: bool
    out_init_std: float
    numerics: Numerics


# Bounds of the options of mechanisms and weightings that no other setting moves.
ATTENTION_OPTIONS = (
    Key("attention.lambda_init", at_least=0, below=1),
    Key("attention.random_features", at_least=1, below=65_537),
    Key("attention.gate", one_of=GATES),
    Key("attention.k", at_least=1),
    *keys("attention", "cap temperature delta budget", above=0),
    Key("attention.reference_length", above=1),
)


@dataclasses.dataclass(frozen=True)
class FeedForwardConfig:
    """A feed-forward layer."""

    mlp_dim: Annotated[int, Key("model.mlp_dim", at_least=1)]
    activation: Annotated[str, Key("model.activation", one_of=ACTIVATIONS)]
    bias: Annotated[bool, Key("model.bias")]
    out_init_std: float
    numerics: Numerics


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """A block; `cross_attention` is None where there is none."""

    attention: AttentionConfig
    cross_attention: AttentionConfig | None
    feed_forward: FeedForwardConfig
    norm: NormConfig
    norm_position: Annotated[str, Key("model.norm_position", one_of=NORM_POSITIONS)]
    dropout: Dropout


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Blocks of one kind."""

    num_layers: Annotated[int, Key("model.num_layers", at_least=1, below=10_001)]
    block: BlockConfig
    position_embedding: PositionEmbedding
    relative_num_buckets: Annotated[
        int, Key("model.relative_num_buckets", at_least=4, below=1_000_001)
    ]
    relative_max_distance: Annotated[
        int, Key("model.relative_max_distance", at_least=1, below=1_000_001)
    ]
    share_layers: Annotated[bool, Key("model.share_layers")]
    scan: Annotated[bool, Key("model.scan")]
    remat: Annotated[bool, Key("model.remat")]

    @property
    def scanned(self) -> bool:
        """Whether the layers are steps of a scan."""
        return self.scan or self.share_layers


@dataclasses.dataclass(frozen=True)
class TransformConfig:
    """The layer in front of the head, of width `embedding_dim`."""

    embedding_dim: int
    activation: Annotated[str, Key("model.activation", one_of=ACTIVATIONS)]
    norm: NormConfig
    numerics: Numerics


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The output head, and the head's own options."""

    head: Annotated[str, Key("output.head", one_of=OUTPUTS)]
    tied: Annotated[bool, Key("output.tied")]
    token_chunk_size: Annotated[int | None, Key("output.token_chunk_size", at_least=0)]
    options: Options


# Bounds of the options of heads that no other setting moves.
HEAD_OPTIONS = (
    *keys("output", "cap temperature reach sigma epsilon emphasis", above=0),
    *keys("output", "z_loss focal confidence_penalty double_every", at_least=0),
    *keys("output", "gates divisor classes samples", at_least=1),
    Key("output.label_smoothing", at_least=0, below=1),
    Key("output.mixtures", at_least=1, below=65_537),
    Key("output.pieces", at_least=1, below=65),
    Key("output.distribution", one_of=DISTRIBUTIONS),
    Key("output.every", at_least=1, below=100_000_001),
    Key("output.alpha", above=1, at_most=2),
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Transformer.

    `encoder` is the encoder of an encoder-decoder, whose decoder is `stack`; `transform` is None
    where nothing stands between the stack and the head.
    """

    architecture: Annotated[str, Key("model.architecture", one_of=ARCHITECTURES)]
    d_model: Width
    embedding: EmbeddingConfig
    encoder: StackConfig | None
    stack: StackConfig
    transform: TransformConfig | None
    pooler: Annotated[bool, Key("model.pooler")]
    head: HeadConfig
    numerics: Numerics


@dataclasses.dataclass(frozen=True)
class OutputSpace:
    """What a head chooses among, which follows from the data, the task and the devices.

    Attributes:
      num_classes: how many labels it chooses among; 0: the vocabulary.
      real_targets: it predicts a real number instead of a class.
      readout: which hidden states it sees: a name of `lm.model.pooling.READOUTS`.
      target_fraction: about the share of the tokens that count in the loss.
      counts: of the vocabulary's tokens in the training text, for heads that ask; None: tokens
        count as ordered by frequency.
      shards: how devices share the work; None: as the compiler finds.
    """

    num_classes: int = 0
    real_targets: bool = False
    readout: str = "all_positions"
    target_fraction: float = 1.0
    counts: tuple[int, ...] | None = None
    shards: Shards | None = None


def model_keys() -> list[Key]:
    """Every key of the model with its bounds, also those of an encoder-decoder's other sides."""
    found = [*keys_within(ModelConfig), *ATTENTION_OPTIONS, *HEAD_OPTIONS]
    of_other_sides = (
        dataclasses.replace(key, name=f"{side}.{key.name.partition('.')[2]}")
        for side in ("encoder_attention", "cross_attention")
        for key in found
        if key.name.startswith("attention.")
    )
    return [*found, *of_other_sides]
