"""How does a Llama checkpoint (SmolLM is one) map to a decoder, and a Qwen2, which has biases of
queries, keys and values besides? (Touvron et al. 2302.13971, 2407.10671)
"""

from collections.abc import Mapping
from typing import Any

from lm.checkpoints.hf.family import Family, Setting
from lm.checkpoints.hf.view import View, in_layers, linear, norm
from lm.config import Config
from lm.errors import UserError

_FIXED = {
    "model.architecture": "decoder",
    "model.norm": "rmsnorm",
    "model.position_embedding": "rotary",
    "model.bias": False,
}
_SETTINGS = (
    Setting("model.num_layers", "num_hidden_layers", 32),
    Setting("model.d_model", "hidden_size", 4096),
    Setting("model.num_heads", "num_attention_heads", 32),
    Setting("model.num_kv_heads", "num_key_value_heads", None),
    Setting("model.mlp_dim", "intermediate_size", 11008),
    Setting("model.activation", "hidden_act", "silu", {"silu": "swiglu"}),
    Setting("model.norm_eps", "rms_norm_eps", 1e-6),
    Setting("model.max_seq_len", "max_position_embeddings", 2048),
    Setting("output.tied", "tie_word_embeddings", False),
)


def _views(_: Config) -> tuple[View, ...]:
    return (
        View("embed_tokens.weight", "embedding"),
        *in_layers(
            "layers.{layer}",
            "stack",
            norm("input_layernorm", "attention_norm"),
            linear("self_attn.q_proj", "attention/query"),
            linear("self_attn.k_proj", "attention/key"),
            linear("self_attn.v_proj", "attention/value"),
            linear("self_attn.o_proj", "attention/out"),
            norm("post_attention_layernorm", "feed_forward_norm"),
            linear("mlp.gate_proj", "feed_forward/gate"),
            linear("mlp.up_proj", "feed_forward/in"),
            linear("mlp.down_proj", "feed_forward/out"),
        ),
        *norm("norm", "stack/final_norm"),
        View("lm_head.weight", "head/table"),
    )


def _rotation(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The base, which newer config.json keep beside the kind of scaling."""
    rotation = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = rotation.get("rope_type") or rotation.get("type") or "default"
    if kind != "default":
        raise UserError(
            f"the checkpoint's config.json scales rotary positions by {kind!r}, and only unscaled "
            "ones are supported; use a checkpoint without rope_scaling"
        )
    base = rotation.get("rope_theta", theirs.get("rope_theta", 10000.0))
    return {"model.rope_theta": float(base)}


def _their_rotation(config: Config) -> dict[str, Any]:
    base = config.model.rope_theta
    return {"rope_theta": base, "rope_parameters": {"rope_type": "default", "rope_theta": base}}


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    _FIXED,
    (*_SETTINGS, Setting("model.head_dim", "head_dim", None)),
    _views,
    prefix="model.",
    outside=("lm_head.",),
    demands={"attention_bias": False, "mlp_bias": False},
    more_ours=_rotation,
    more_theirs=_their_rotation,
    ignored=r"rotary_emb\.inv_freq$|^lm_head\.weight",
)
QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    _FIXED | {"model.qkv_bias": True},
    _SETTINGS,
    _views,
    prefix="model.",
    outside=("lm_head.",),
    demands={"use_sliding_window": False},
    more_ours=_rotation,
    more_theirs=_their_rotation,
    ignored=r"rotary_emb\.inv_freq$|^lm_head\.weight",
)
