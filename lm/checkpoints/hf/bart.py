"""Maps BART to an encoder-decoder with norms behind each branch (Lewis et al. 1910.13461)."""

from collections.abc import Mapping
from typing import Any

from lm.checkpoints.hf.family import ACTIVATIONS, Family, KeyMapping
from lm.checkpoints.hf.hf_config import first_token
from lm.checkpoints.hf.tensor_mapping import TensorMapping, in_layers, linear, linears, norm
from lm.config import Config
from lm.errors import UserError
from lm.model.resolve import model_config


def _attention(hf: str, param: str) -> tuple[TensorMapping, ...]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    return (*linears(hf, param, names), *norm(f"{hf}_layer_norm", f"{param}_norm"))


def _side(
    hf: str, param: str, inputs: str, *crossing: tuple[TensorMapping, ...]
) -> tuple[TensorMapping, ...]:
    # The first two places are for padding, and begin no text.
    return (
        TensorMapping(f"{hf}.embed_positions.weight", f"{inputs}/position_embedding", skip_rows=2),
        *norm(f"{hf}.layernorm_embedding", f"{inputs}/norm"),
        *in_layers(
            f"{hf}.layers.{{layer}}",
            param,
            _attention("self_attn", "attention"),
            *crossing,
            linear("fc1", "feed_forward/in"),
            linear("fc2", "feed_forward/out"),
            norm("final_layer_norm", "feed_forward_norm"),
        ),
    )


def _mappings(_: Config) -> tuple[TensorMapping, ...]:
    return (
        TensorMapping("shared.weight", "embedding"),
        *_side("encoder", "encoder", "encoder_inputs"),
        *_side("decoder", "stack", "inputs", _attention("encoder_attn", "cross_attention")),
        TensorMapping("final_logits_bias", "head/bias", unsqueezed=True),
        TensorMapping("lm_head.weight", "head/table"),
    )


def _extra_config(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    for name, default in (("layers", 12), ("attention_heads", 16), ("ffn_dim", 4096)):
        sizes = [hf_config.get(f"{side}_{name}", default) for side in ("encoder", "decoder")]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"the checkpoint has {name} {sizes[0]} in its encoder, {sizes[1]} in its decoder, "
                "and only equal ones are supported; use another checkpoint"
            )
    scaled = hf_config.get("scale_embedding", False)
    return {"model.embedding_scale": hf_config.get("d_model", 1024) ** 0.5 if scaled else 1.0}


def _extra_hf_config(config: Config) -> dict[str, Any]:
    model = config.model
    return {
        "decoder_layers": model.num_layers,
        "decoder_attention_heads": model.num_heads,
        "decoder_ffn_dim": model_config(config).stack.block.feed_forward.mlp_dim,
        "scale_embedding": model.embedding_scale != 1.0,
    }


def _special_tokens(hf_config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """<s>, a text and </s>; the decoder begins with </s> and <s>."""
    begin = first_token(hf_config, "bos_token_id", 0)
    end = first_token(hf_config, "eos_token_id", 2)
    return (begin,), (end,), (first_token(hf_config, "decoder_start_token_id", end), begin)


BART = Family(
    "bart",
    "BartForConditionalGeneration",
    {
        "model.architecture": "encoder_decoder",
        "model.norm_position": "post",
        "model.norm_eps": 1e-5,
        "model.embedding_norm": True,
        "output.bias": True,
    },
    (
        KeyMapping("model.num_layers", "encoder_layers", 12),
        KeyMapping("model.d_model", "d_model", 1024),
        KeyMapping("model.num_heads", "encoder_attention_heads", 16),
        KeyMapping("model.mlp_dim", "encoder_ffn_dim", 4096),
        KeyMapping("model.activation", "activation_function", "gelu", ACTIVATIONS),
        KeyMapping("model.max_seq_len", "max_position_embeddings", 1024),
        KeyMapping("output.tied", "tie_word_embeddings", True),
    ),
    _mappings,
    prefix="model.",
    unprefixed=("final_logits_bias", "lm_head."),
    extra_config=_extra_config,
    extra_hf_config=_extra_hf_config,
    special_tokens=_special_tokens,
    ignored=r"^(encoder|decoder)\.embed_tokens\.weight|^lm_head\.weight",
)
