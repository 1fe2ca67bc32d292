"""How does a T5 checkpoint map to an encoder-decoder? The first release ties the head to the words
and divides what it reads by the root of D; the second (1.1) gates its feed-forward layers
(Raffel et al. 1910.10683).
"""

from collections.abc import Mapping
from typing import Any

from lm.checkpoints.hf.family import Family, Setting
from lm.checkpoints.hf.hf_config import first_token
from lm.checkpoints.hf.view import View, in_layers, linear, norm
from lm.config import Config
from lm.errors import UserError
from lm.model.layers import GATED


def _attention(theirs: str, ours: str) -> tuple[View, ...]:
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return tuple(view for a, b in names.items() for view in linear(f"{theirs}.{a}", f"{ours}/{b}"))


def _views(config: Config) -> tuple[View, ...]:
    gated = config.model.activation in GATED

    def feed_forward(place: int) -> tuple[View, ...]:
        inner = {"wi_0": "gate", "wi_1": "in"} if gated else {"wi": "in"}
        return tuple(
            view
            for a, b in (inner | {"wo": "out"}).items()
            for view in linear(f"layer.{place}.DenseReluDense.{a}", f"feed_forward/{b}")
        )

    def side(theirs: str, ours: str, *crossing: tuple[View, ...]) -> tuple[View, ...]:
        place = 2 if crossing else 1
        table = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return (
            View(table, f"{ours}/relative_position"),
            *in_layers(
                f"{theirs}.block.{{layer}}",
                ours,
                norm("layer.0.layer_norm", "attention_norm"),
                _attention("layer.0.SelfAttention", "attention"),
                *crossing,
                norm(f"layer.{place}.layer_norm", "feed_forward_norm"),
                feed_forward(place),
            ),
            *norm(f"{theirs}.final_layer_norm", f"{ours}/final_norm"),
        )

    return (
        View("shared.weight", "embedding"),
        *side("encoder", "encoder"),
        *side(
            "decoder",
            "stack",
            norm("layer.1.layer_norm", "cross_attention_norm"),
            _attention("layer.1.EncDecAttention", "cross_attention"),
        ),
        View("lm_head.weight", "head/table"),
    )


def _more_ours(theirs: Mapping[str, Any]) -> dict[str, Any]:
    layers = theirs.get("num_layers", 6)
    deeper = theirs.get("num_decoder_layers") or layers
    if deeper != layers:
        raise UserError(
            f"the checkpoint has {layers} layers in its encoder and {deeper} in its decoder, and "
            "ours have as many in both; use another checkpoint"
        )
    scaled = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True))
    return {"output.temperature": theirs.get("d_model", 512) ** 0.5 if scaled else None}


def _more_theirs(config: Config) -> dict[str, Any]:
    scaled = config.output.temperature is not None
    return {
        "num_decoder_layers": config.model.num_layers,
        # Older versions of transformers tell the one from the other.
        "tie_word_embeddings": scaled,
        "scale_decoder_outputs": scaled,
    }


def _frame(theirs: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """A text and </s>; the decoder begins with padding."""
    end, start = ("eos_token_id", 1), ("decoder_start_token_id", 0)
    return (), (first_token(theirs, *end),), (first_token(theirs, *start),)


T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    {
        "model.architecture": "encoder_decoder",
        "model.norm": "rmsnorm",
        "model.position_embedding": "relative",
        "model.bias": False,
        "model.score_scale": 1.0,
    },
    (
        Setting("model.num_layers", "num_layers", 6),
        Setting("model.d_model", "d_model", 512),
        Setting("model.num_heads", "num_heads", 8),
        Setting("model.head_dim", "d_kv", 64),
        Setting("model.mlp_dim", "d_ff", 2048),
        Setting(
            "model.activation",
            "feed_forward_proj",
            "relu",
            {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu"},
        ),
        Setting("model.norm_eps", "layer_norm_epsilon", 1e-6),
        Setting("model.relative_num_buckets", "relative_attention_num_buckets", 32),
        Setting("model.relative_max_distance", "relative_attention_max_distance", 128),
    ),
    _views,
    more_ours=_more_ours,
    more_theirs=_more_theirs,
    absent={"output.tied": "lm_head.weight"},
    ignored=r"^(encoder|decoder)\.embed_tokens\.weight|EncDecAttention\.relative",
    frame=_frame,
)
