"""How does a BART checkpoint map to an encoder-decoder with norms behind each branch? (Lewis et al.
1910.13461)
"""

from collections.abc import Mapping
from typing import Any

from lm.checkpoints.hf.family import ACTIVATIONS, Family, Setting
from lm.checkpoints.hf.hf_config import first_token
from lm.checkpoints.hf.view import View, in_layers, linear, norm
from lm.config import Config
from lm.errors import UserError


def _attention(theirs: str, ours: str) -> tuple[View, ...]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    projections = (linear(f"{theirs}.{a}", f"{ours}/{b}") for a, b in names.items())
    norms = norm(f"{theirs}_layer_norm", f"{ours}_norm")
    return (*(view for pair in projections for view in pair), *norms)


def _side(theirs: str, ours: str, inputs: str, *crossing: tuple[View, ...]) -> tuple[View, ...]:
    # The first two places are for padding, and begin no text.
    return (
        View(f"{theirs}.embed_positions.weight", f"{inputs}/position_embedding", skip=2),
        *norm(f"{theirs}.layernorm_embedding", f"{inputs}/norm"),
        *in_layers(
            f"{theirs}.layers.{{layer}}",
            ours,
            _attention("self_attn", "attention"),
            *crossing,
            linear("fc1", "feed_forward/in"),
            linear("fc2", "feed_forward/out"),
            norm("final_layer_norm", "feed_forward_norm"),
        ),
    )


def _views(_: Config) -> tuple[View, ...]:
    return (
        View("shared.weight", "embedding"),
        *_side("encoder", "encoder", "encoder_inputs"),
        *_side("decoder", "stack", "inputs", _attention("encoder_attn", "cross_attention")),
        View("final_logits_bias", "head/bias", unsqueezed=True),
        View("lm_head.weight", "head/table"),
    )


def _more_ours(theirs: Mapping[str, Any]) -> dict[str, Any]:
    for name, default in (("layers", 12), ("attention_heads", 16), ("ffn_dim", 4096)):
        sizes = [theirs.get(f"{side}_{name}", default) for side in ("encoder", "decoder")]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"the checkpoint has {name} {sizes[0]} in its encoder, {sizes[1]} in its decoder, "
                "and ours are alike; use another checkpoint"
            )
    scaled = theirs.get("scale_embedding", False)
    return {"model.embedding_scale": theirs.get("d_model", 1024) ** 0.5 if scaled else 1.0}


def _more_theirs(config: Config) -> dict[str, Any]:
    model = config.model
    return {
        "decoder_layers": model.num_layers,
        "decoder_attention_heads": model.num_heads,
        "decoder_ffn_dim": model.mlp_dim or 4 * model.d_model,
        "scale_embedding": model.embedding_scale != 1.0,
    }


def _frame(theirs: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """<s>, a text and </s>; the decoder begins with </s> and <s>."""
    begin, end = first_token(theirs, "bos_token_id", 0), first_token(theirs, "eos_token_id", 2)
    return (begin,), (end,), (first_token(theirs, "decoder_start_token_id", end), begin)


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
        Setting("model.num_layers", "encoder_layers", 12),
        Setting("model.d_model", "d_model", 1024),
        Setting("model.num_heads", "encoder_attention_heads", 16),
        Setting("model.mlp_dim", "encoder_ffn_dim", 4096),
        Setting("model.activation", "activation_function", "gelu", ACTIVATIONS),
        Setting("model.max_seq_len", "max_position_embeddings", 1024),
        Setting("output.tied", "tie_word_embeddings", True),
    ),
    _views,
    prefix="model.",
    outside=("final_logits_bias", "lm_head."),
    more_ours=_more_ours,
    more_theirs=_more_theirs,
    frame=_frame,
    ignored=r"^(encoder|decoder)\.embed_tokens\.weight|^lm_head\.weight",
)
