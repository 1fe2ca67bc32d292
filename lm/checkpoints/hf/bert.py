"""Maps BERT to an encoder, and the families that name their layers as it does, RoBERTa and ELECTRA
(Devlin et al. 1810.04805, 1907.11692, 2003.10555).
"""

from collections.abc import Mapping
from typing import Any

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

POST_NORM = {
    "model.architecture": "encoder",
    "model.norm_position": "post",
    "model.embedding_norm": True,
    "model.head_transform": True,
    "output.bias": True,
}
KEYS = (
    KeyMapping("model.num_layers", "num_hidden_layers", 12),
    KeyMapping("model.d_model", "hidden_size", 768),
    KeyMapping("model.num_heads", "num_attention_heads", 12),
    KeyMapping("model.mlp_dim", "intermediate_size", 3072),
    KeyMapping("model.activation", "hidden_act", "gelu", ACTIVATIONS),
    KeyMapping("model.norm_eps", "layer_norm_eps", 1e-12),
    KeyMapping("model.num_token_types", "type_vocab_size", 2),
    KeyMapping("output.tied", "tie_word_embeddings", True),
)
LENGTH = KeyMapping("model.max_seq_len", "max_position_embeddings", 512)
REQUIRED = {"position_embedding_type": "absolute", "is_decoder": False}


def embeddings(skip_rows: int = 0) -> tuple[TensorMapping, ...]:
    """The tables of tokens, places and types, and their norm."""
    positions = "embeddings.position_embeddings.weight"
    return (
        TensorMapping("embeddings.word_embeddings.weight", "embedding"),
        TensorMapping(positions, "inputs/position_embedding", skip_rows=skip_rows),
        TensorMapping("embeddings.token_type_embeddings.weight", "inputs/type_embedding"),
        *norm("embeddings.LayerNorm", "inputs/norm"),
    )


def output_table(hf: str, config: Config) -> tuple[TensorMapping, ...]:
    """The head's table, where it is not tied, and its bias, which then has the table's name."""
    bias = f"{hf}.bias" if config.output.tied else f"{hf}.decoder.bias"
    return TensorMapping(f"{hf}.decoder.weight", "head/table"), TensorMapping(bias, "head/bias")


BODY = in_layers(
    "encoder.layer.{layer}",
    "stack",
    linears("attention.self", "attention", {"query": "query", "key": "key", "value": "value"}),
    linear("attention.output.dense", "attention/out"),
    norm("attention.output.LayerNorm", "attention_norm"),
    linear("intermediate.dense", "feed_forward/in"),
    linear("output.dense", "feed_forward/out"),
    norm("output.LayerNorm", "feed_forward_norm"),
)


def _mappings(
    config: Config, transform: str, norm_name: str, output: str, skip_rows: int = 0
) -> tuple[TensorMapping, ...]:
    """Those of BERT and RoBERTa, whose heads differ in the names of their tensors."""
    return (
        *embeddings(skip_rows),
        *BODY,
        *linear("pooler.dense", "pool/dense"),
        *linear(transform, "transform/in"),
        *norm(norm_name, "transform/norm"),
        *output_table(output, config),
    )


def _bert_mappings(config: Config) -> tuple[TensorMapping, ...]:
    head = "cls.predictions"
    return _mappings(config, f"{head}.transform.dense", f"{head}.transform.LayerNorm", head)


def _roberta_mappings(config: Config) -> tuple[TensorMapping, ...]:
    # The first two places are for padding, and begin no text.
    return _mappings(config, "lm_head.dense", "lm_head.layer_norm", "lm_head", skip_rows=2)


def _electra_mappings(_: Config) -> tuple[TensorMapping, ...]:
    return (
        *embeddings(),
        *linear("embeddings_project", "inputs/projection"),
        *BODY,
        *linear("generator_predictions.dense", "transform/in"),
        *norm("generator_predictions.LayerNorm", "transform/norm"),
        *head_table("generator_lm_head"),
    )


def _max_seq_len(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    return {"model.max_seq_len": hf_config.get("max_position_embeddings", 514) - 2}


def _max_position_embeddings(config: Config) -> dict[str, Any]:
    return {"max_position_embeddings": config.model.max_seq_len + 2}


BERT = Family(
    "bert",
    "BertForMaskedLM",
    POST_NORM,
    (*KEYS, LENGTH),
    _bert_mappings,
    prefix="bert.",
    unprefixed=("cls.",),
    required=REQUIRED,
    true_if_present={"model.pooler": "pooler.dense.weight"},
    ignored=r"position_ids$|^cls\.predictions\.(bias|decoder\.)",
    aliases=("cls.predictions.bias", "cls.predictions.decoder.bias"),
)
ROBERTA = Family(
    "roberta",
    "RobertaForMaskedLM",
    POST_NORM,
    KEYS,
    _roberta_mappings,
    prefix="roberta.",
    unprefixed=("lm_head.",),
    # Its head has the exact gelu whatever hidden_act says.
    required=REQUIRED | {"pad_token_id": 1, "hidden_act": "gelu"},
    extra_config=_max_seq_len,
    extra_hf_config=_max_position_embeddings,
    true_if_present={"model.pooler": "pooler.dense.weight"},
    ignored=r"position_ids$|^lm_head\.(bias|decoder\.)",
    aliases=("lm_head.bias", "lm_head.decoder.bias"),
)
ELECTRA = Family(
    "electra",
    "ElectraForMaskedLM",
    POST_NORM,
    (*KEYS, LENGTH, KeyMapping("model.embedding_dim", "embedding_size", 128)),
    _electra_mappings,
    prefix="electra.",
    unprefixed=("generator_",),
    required=REQUIRED | {"hidden_act": "gelu"},
    ignored=r"position_ids$|^generator_lm_head\.weight",
)
