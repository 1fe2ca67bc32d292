"""Maps DistilBERT to an encoder (Sanh et al. 1910.01108)."""

from lm.checkpoints.hf.bert import POST_NORM, embeddings
from lm.checkpoints.hf.family import ACTIVATIONS, Family, KeyMapping
from lm.checkpoints.hf.tensor_mapping import (
    TensorMapping,
    head_table,
    in_layers,
    linear,
    linears,
    norm,
)
from lm.config import Config

_ATTENTION = {"q_lin": "query", "k_lin": "key", "v_lin": "value", "out_lin": "out"}
_BODY = in_layers(
    "transformer.layer.{layer}",
    "stack",
    linears("attention", "attention", _ATTENTION),
    norm("sa_layer_norm", "attention_norm"),
    linears("ffn", "feed_forward", {"lin1": "in", "lin2": "out"}),
    norm("output_layer_norm", "feed_forward_norm"),
)


def _mappings(_: Config) -> tuple[TensorMapping, ...]:
    return (
        *embeddings(),
        *_BODY,
        *linear("vocab_transform", "transform/in"),
        *norm("vocab_layer_norm", "transform/norm"),
        *head_table("vocab_projector"),
    )


DISTILBERT = Family(
    "distilbert",
    "DistilBertForMaskedLM",
    POST_NORM | {"model.norm_eps": 1e-12},
    (
        KeyMapping("model.num_layers", "n_layers", 6),
        KeyMapping("model.d_model", "dim", 768),
        KeyMapping("model.num_heads", "n_heads", 12),
        KeyMapping("model.mlp_dim", "hidden_dim", 3072),
        KeyMapping("model.activation", "activation", "gelu", ACTIVATIONS),
        KeyMapping("model.max_seq_len", "max_position_embeddings", 512),
        KeyMapping("output.tied", "tie_word_embeddings", True),
    ),
    _mappings,
    prefix="distilbert.",
    unprefixed=("vocab_",),
    ignored=r"position_ids$|^vocab_projector\.weight",
)
