"""How does a BERT checkpoint map to an encoder? And those of its kin that name their layers as it
does: RoBERTa and ELECTRA (Devlin et al. 1810.04805, 1907.11692, 2003.10555).
"""

from collections.abc import Mapping
from typing import Any

from lm.checkpoints.hf.family import ACTIVATIONS, Family, Setting
from lm.checkpoints.hf.view import View, in_layers, linear, norm
from lm.config import Config

POST_NORM = {
    "model.architecture": "encoder",
    "model.norm_position": "post",
    "model.embedding_norm": True,
    "model.head_transform": True,
    "output.bias": True,
}
SETTINGS = (
    Setting("model.num_layers", "num_hidden_layers", 12),
    Setting("model.d_model", "hidden_size", 768),
    Setting("model.num_heads", "num_attention_heads", 12),
    Setting("model.mlp_dim", "intermediate_size", 3072),
    Setting("model.activation", "hidden_act", "gelu", ACTIVATIONS),
    Setting("model.norm_eps", "layer_norm_eps", 1e-12),
    Setting("model.num_token_types", "type_vocab_size", 2),
    Setting("output.tied", "tie_word_embeddings", True),
)
LENGTH = Setting("model.max_seq_len", "max_position_embeddings", 512)
DEMANDS = {"position_embedding_type": "absolute", "is_decoder": False}


def embeddings(skip: int = 0) -> tuple[View, ...]:
    """The tables of words, places and types, and their norm."""
    tables = "embeddings."
    return (
        View(f"{tables}word_embeddings.weight", "embedding"),
        View(f"{tables}position_embeddings.weight", "inputs/position_embedding", skip=skip),
        View(f"{tables}token_type_embeddings.weight", "inputs/type_embedding"),
        *norm(f"{tables}LayerNorm", "inputs/norm"),
    )


def words(theirs: str, config: Config) -> tuple[View, ...]:
    """The head's table, where it is not tied, and its bias, which then has the table's name."""
    bias = f"{theirs}.bias" if config.output.tied else f"{theirs}.decoder.bias"
    return View(f"{theirs}.decoder.weight", "head/table"), View(bias, "head/bias")


BODY = in_layers(
    "encoder.layer.{layer}",
    "stack",
    linear("attention.self.query", "attention/query"),
    linear("attention.self.key", "attention/key"),
    linear("attention.self.value", "attention/value"),
    linear("attention.output.dense", "attention/out"),
    norm("attention.output.LayerNorm", "attention_norm"),
    linear("intermediate.dense", "feed_forward/in"),
    linear("output.dense", "feed_forward/out"),
    norm("output.LayerNorm", "feed_forward_norm"),
)


def _bert_views(config: Config) -> tuple[View, ...]:
    return (
        *embeddings(),
        *BODY,
        *linear("pooler.dense", "pool/dense"),
        *linear("cls.predictions.transform.dense", "transform/in"),
        *norm("cls.predictions.transform.LayerNorm", "transform/norm"),
        *words("cls.predictions", config),
    )


def _roberta_views(config: Config) -> tuple[View, ...]:
    # The first two places are for padding, and begin no text.
    return (
        *embeddings(skip=2),
        *BODY,
        *linear("pooler.dense", "pool/dense"),
        *linear("lm_head.dense", "transform/in"),
        *norm("lm_head.layer_norm", "transform/norm"),
        *words("lm_head", config),
    )


def _electra_views(_: Config) -> tuple[View, ...]:
    return (
        *embeddings(),
        *linear("embeddings_project", "inputs/projection"),
        *BODY,
        *linear("generator_predictions.dense", "transform/in"),
        *norm("generator_predictions.LayerNorm", "transform/norm"),
        View("generator_lm_head.bias", "head/bias"),
        View("generator_lm_head.weight", "head/table"),
    )


def _less_two(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {"model.max_seq_len": theirs.get("max_position_embeddings", 514) - 2}


def _and_two(config: Config) -> dict[str, Any]:
    return {"max_position_embeddings": config.model.max_seq_len + 2}


BERT = Family(
    "bert",
    "BertForMaskedLM",
    POST_NORM,
    (*SETTINGS, LENGTH),
    _bert_views,
    prefix="bert.",
    outside=("cls.",),
    demands=DEMANDS,
    present={"model.pooler": "pooler.dense.weight"},
    ignored=r"position_ids$|^cls\.predictions\.(bias|decoder\.)",
    twins=("cls.predictions.bias", "cls.predictions.decoder.bias"),
)
ROBERTA = Family(
    "roberta",
    "RobertaForMaskedLM",
    POST_NORM,
    SETTINGS,
    _roberta_views,
    prefix="roberta.",
    outside=("lm_head.",),
    # Its head has the exact gelu whatever hidden_act says.
    demands=DEMANDS | {"pad_token_id": 1, "hidden_act": "gelu"},
    more_ours=_less_two,
    more_theirs=_and_two,
    present={"model.pooler": "pooler.dense.weight"},
    ignored=r"position_ids$|^lm_head\.(bias|decoder\.)",
    twins=("lm_head.bias", "lm_head.decoder.bias"),
)
ELECTRA = Family(
    "electra",
    "ElectraForMaskedLM",
    POST_NORM,
    (
        *SETTINGS,
        LENGTH,
        Setting("model.embedding_dim", "embedding_size", 128),
    ),
    _electra_views,
    prefix="electra.",
    outside=("generator_",),
    demands=DEMANDS | {"hidden_act": "gelu"},
    ignored=r"position_ids$|^generator_lm_head\.weight",
)
