"""Maps Llama (SmolLM is one) to a decoder, and Qwen2, which has biases of queries, keys and values
besides (Touvron et al. 2302.13971, 2407.10671).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.checkpoints.hf.family import Family, KeyMapping
from lm.checkpoints.hf.tensor_mapping import TensorMapping, in_layers, linears, norm
from lm.config import Config
from lm.errors import UserError

_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_FEED_FORWARD = {"gate_proj": "gate", "up_proj": "in", "down_proj": "out"}


def _mappings(_: Config) -> tuple[TensorMapping, ...]:
    return (
        TensorMapping("embed_tokens.weight", "embedding"),
        *in_layers(
            "layers.{layer}",
            "stack",
            norm("input_layernorm", "attention_norm"),
            linears("self_attn", "attention", _ATTENTION),
            norm("post_attention_layernorm", "feed_forward_norm"),
            linears("mlp", "feed_forward", _FEED_FORWARD),
        ),
        *norm("norm", "stack/final_norm"),
        TensorMapping("lm_head.weight", "head/table"),
    )


def _rope(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The base, which newer config.json keep beside the kind of scaling."""
    rotation = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    kind = rotation.get("rope_type") or rotation.get("type") or "default"
    if kind != "default":
        raise UserError(
            f"the checkpoint's config.json scales rotary positions by {kind!r}, and only unscaled "
            "ones are supported; use a checkpoint without rope_scaling"
        )
    base = rotation.get("rope_theta", hf_config.get("rope_theta", 10000.0))
    return {"model.rope_theta": float(base)}


def _hf_rope(config: Config) -> dict[str, Any]:
    base = config.model.rope_theta
    return {"rope_theta": base, "rope_parameters": {"rope_type": "default", "rope_theta": base}}


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    {
        "model.architecture": "decoder",
        "model.norm": "rmsnorm",
        "model.position_embedding": "rotary",
        "model.bias": False,
    },
    (
        KeyMapping("model.num_layers", "num_hidden_layers", 32),
        KeyMapping("model.d_model", "hidden_size", 4096),
        KeyMapping("model.num_heads", "num_attention_heads", 32),
        KeyMapping("model.num_kv_heads", "num_key_value_heads", None),
        KeyMapping("model.mlp_dim", "intermediate_size", 11008),
        KeyMapping("model.activation", "hidden_act", "silu", {"silu": "swiglu"}),
        KeyMapping("model.norm_eps", "rms_norm_eps", 1e-6),
        KeyMapping("model.max_seq_len", "max_position_embeddings", 2048),
        KeyMapping("output.tied", "tie_word_embeddings", False),
        KeyMapping("model.head_dim", "head_dim", None),
    ),
    _mappings,
    prefix="model.",
    unprefixed=("lm_head.",),
    required={"attention_bias": False, "mlp_bias": False},
    extra_config=_rope,
    extra_hf_config=_hf_rope,
    ignored=r"rotary_emb\.inv_freq$|^lm_head\.weight",
)
QWEN2 = dataclasses.replace(
    LLAMA,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fixed=LLAMA.fixed | {"model.qkv_bias": True},
    keys=LLAMA.keys[:-1],  # its head_dim is derived
    required={"use_sliding_window": False},
)
