"""Maps T5 to an encoder-decoder. The first release ties the head to the embedding and divides
hidden states by the root of D; the second (1.1) gates its feed-forward layers (Raffel et al.
1910.10683).
"""

from collections.abc import Mapping
from typing import Any

from lm.checkpoints.hf.family import Family, KeyMapping
from lm.checkpoints.hf.hf_config import first_token
from lm.checkpoints.hf.tensor_mapping import TensorMapping, in_layers, linears, norm
from lm.config import Config
from lm.errors import UserError
from lm.model.activations import GATED


def _attention(hf: str, param: str) -> tuple[TensorMapping, ...]:
    return linears(hf, param, {"q": "query", "k": "key", "v": "value", "o": "out"})


def _mappings(config: Config) -> tuple[TensorMapping, ...]:
    gated = config.model.activation in GATED
    matrices = {"wi_0": "gate", "wi_1": "in"} if gated else {"wi": "in"}
    matrices["wo"] = "out"

    def side(
        hf: str, param: str, *crossing: tuple[TensorMapping, ...]
    ) -> tuple[TensorMapping, ...]:
        place = 2 if crossing else 1
        table = f"{hf}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return (
            TensorMapping(table, f"{param}/relative_position"),
            *in_layers(
                f"{hf}.block.{{layer}}",
                param,
                norm("layer.0.layer_norm", "attention_norm"),
                _attention("layer.0.SelfAttention", "attention"),
                *crossing,
                norm(f"layer.{place}.layer_norm", "feed_forward_norm"),
                linears(f"layer.{place}.DenseReluDense", "feed_forward", matrices),
            ),
            *norm(f"{hf}.final_layer_norm", f"{param}/final_norm"),
        )

    return (
        TensorMapping("shared.weight", "embedding"),
        *side("encoder", "encoder"),
        *side(
            "decoder",
            "stack",
            norm("layer.1.layer_norm", "cross_attention_norm"),
            _attention("layer.1.EncDecAttention", "cross_attention"),
        ),
        TensorMapping("lm_head.weight", "head/table"),
    )


def _extra_config(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    layers = hf_config.get("num_layers", 6)
    deeper = hf_config.get("num_decoder_layers") or layers
    if deeper != layers:
        raise UserError(
            f"the checkpoint has {layers} layers in its encoder and {deeper} in its decoder, and "
            "only equal numbers are supported; use another checkpoint"
        )
    scaled = hf_config.get("scale_decoder_outputs", hf_config.get("tie_word_embeddings", True))
    return {"output.temperature": hf_config.get("d_model", 512) ** 0.5 if scaled else None}


def _extra_hf_config(config: Config) -> dict[str, Any]:
    scaled = config.output.temperature is not None
    return {
        "num_decoder_layers": config.model.num_layers,
        # Older versions of transformers tell the one from the other.
        "tie_word_embeddings": scaled,
        "scale_decoder_outputs": scaled,
    }


def _special_tokens(hf_config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """A text and </s>; the decoder begins with padding."""
    end, start = ("eos_token_id", 1), ("decoder_start_token_id", 0)
    return (), (first_token(hf_config, *end),), (first_token(hf_config, *start),)


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
        KeyMapping("model.num_layers", "num_layers", 6),
        KeyMapping("model.d_model", "d_model", 512),
        KeyMapping("model.num_heads", "num_heads", 8),
        KeyMapping("model.head_dim", "d_kv", 64),
        KeyMapping("model.mlp_dim", "d_ff", 2048),
        KeyMapping(
            "model.activation",
            "feed_forward_proj",
            "relu",
            {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu"},
        ),
        KeyMapping("model.norm_eps", "layer_norm_epsilon", 1e-6),
        KeyMapping("model.relative_num_buckets", "relative_attention_num_buckets", 32),
        KeyMapping("model.relative_max_distance", "relative_attention_max_distance", 128),
    ),
    _mappings,
    extra_config=_extra_config,
    extra_hf_config=_extra_hf_config,
    true_if_absent={"output.tied": "lm_head.weight"},
    ignored=r"^(encoder|decoder)\.embed_tokens\.weight|EncDecAttention\.relative",
    special_tokens=_special_tokens,
)
