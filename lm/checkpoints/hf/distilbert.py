"""How does a DistilBERT checkpoint map to an encoder? (Sanh et al. 1910.01108)"""

from lm.checkpoints.hf.bert import POST_NORM, embeddings
from lm.checkpoints.hf.family import ACTIVATIONS, Family, Setting
from lm.checkpoints.hf.view import View, in_layers, linear, norm
from lm.config import Config

_BODY = in_layers(
    "transformer.layer.{layer}",
    "stack",
    linear("attention.q_lin", "attention/query"),
    linear("attention.k_lin", "attention/key"),
    linear("attention.v_lin", "attention/value"),
    linear("attention.out_lin", "attention/out"),
    norm("sa_layer_norm", "attention_norm"),
    linear("ffn.lin1", "feed_forward/in"),
    linear("ffn.lin2", "feed_forward/out"),
    norm("output_layer_norm", "feed_forward_norm"),
)


def _views(_: Config) -> tuple[View, ...]:
    return (
        *embeddings(),
        *_BODY,
        *linear("vocab_transform", "transform/in"),
        *norm("vocab_layer_norm", "transform/norm"),
        View("vocab_projector.bias", "head/bias"),
        View("vocab_projector.weight", "head/table"),
    )


DISTILBERT = Family(
    "distilbert",
    "DistilBertForMaskedLM",
    POST_NORM | {"model.norm_eps": 1e-12},
    (
        Setting("model.num_layers", "n_layers", 6),
        Setting("model.d_model", "dim", 768),
        Setting("model.num_heads", "n_heads", 12),
        Setting("model.mlp_dim", "hidden_dim", 3072),
        Setting("model.activation", "activation", "gelu", ACTIVATIONS),
        Setting("model.max_seq_len", "max_position_embeddings", 512),
        Setting("output.tied", "tie_word_embeddings", True),
    ),
    _views,
    prefix="distilbert.",
    outside=("vocab_",),
    ignored=r"position_ids$|^vocab_projector\.weight",
)
