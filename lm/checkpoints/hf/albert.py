"""How does an ALBERT checkpoint map to an encoder of one shared layer and a narrow table of words?
(Lan et al. 1909.11942)
"""

from lm.checkpoints.hf.bert import DEMANDS, LENGTH, POST_NORM, SETTINGS, embeddings, words
from lm.checkpoints.hf.family import Family, Setting
from lm.checkpoints.hf.view import View, in_layers, linear, norm
from lm.config import Config

_BODY = in_layers(
    "encoder.albert_layer_groups.0.albert_layers.0",
    "stack",
    linear("attention.query", "attention/query"),
    linear("attention.key", "attention/key"),
    linear("attention.value", "attention/value"),
    linear("attention.dense", "attention/out"),
    norm("attention.LayerNorm", "attention_norm"),
    linear("ffn", "feed_forward/in"),
    linear("ffn_output", "feed_forward/out"),
    norm("full_layer_layer_norm", "feed_forward_norm"),
)


def _views(config: Config) -> tuple[View, ...]:
    return (
        *embeddings(),
        *linear("encoder.embedding_hidden_mapping_in", "inputs/projection"),
        *_BODY,
        *linear("pooler", "pool/dense"),
        *linear("predictions.dense", "transform/in"),
        *norm("predictions.LayerNorm", "transform/norm"),
        *words("predictions", config),
    )


ALBERT = Family(
    "albert",
    "AlbertForMaskedLM",
    POST_NORM | {"model.share_layers": True},
    (*SETTINGS, LENGTH, Setting("model.embedding_dim", "embedding_size", 128)),
    _views,
    prefix="albert.",
    outside=("predictions.",),
    demands=DEMANDS | {"num_hidden_groups": 1, "inner_group_num": 1},
    present={"model.pooler": "pooler.weight"},
    ignored=r"position_ids$|^predictions\.(bias|decoder\.)|^sop_classifier\.",
    twins=("predictions.bias", "predictions.decoder.bias"),
)
