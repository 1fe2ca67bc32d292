"""Maps ALBERT to an encoder of one shared layer and a narrow embedding (Lan et al. 1909.11942)."""

from lm.checkpoints.hf.bert import KEYS, LENGTH, POST_NORM, REQUIRED, embeddings, output_table
from lm.checkpoints.hf.family import Family, KeyMapping
from lm.checkpoints.hf.tensor_mapping import TensorMapping, in_layers, linear, linears, norm
from lm.config import Config

_ATTENTION = {"query": "query", "key": "key", "value": "value", "dense": "out"}
_BODY = in_layers(
    "encoder.albert_layer_groups.0.albert_layers.0",
    "stack",
    linears("attention", "attention", _ATTENTION),
    norm("attention.LayerNorm", "attention_norm"),
    linear("ffn", "feed_forward/in"),
    linear("ffn_output", "feed_forward/out"),
    norm("full_layer_layer_norm", "feed_forward_norm"),
)


def _mappings(config: Config) -> tuple[TensorMapping, ...]:
    return (
        *embeddings(),
        *linear("encoder.embedding_hidden_mapping_in", "inputs/projection"),
        *_BODY,
        *linear("pooler", "pool/dense"),
        *linear("predictions.dense", "transform/in"),
        *norm("predictions.LayerNorm", "transform/norm"),
        *output_table("predictions", config),
    )


ALBERT = Family(
    "albert",
    "AlbertForMaskedLM",
    POST_NORM | {"model.share_layers": True},
    (*KEYS, LENGTH, KeyMapping("model.embedding_dim", "embedding_size", 128)),
    _mappings,
    prefix="albert.",
    unprefixed=("predictions.",),
    required=REQUIRED | {"num_hidden_groups": 1, "inner_group_num": 1},
    true_if_present={"model.pooler": "pooler.weight"},
    ignored=r"position_ids$|^predictions\.(bias|decoder\.)|^sop_classifier\.",
    aliases=("predictions.bias", "predictions.decoder.bias"),
)
