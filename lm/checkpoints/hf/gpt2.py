"""How does a GPT-2 checkpoint map to a decoder? Its matrices are [in, out] as ours are, and
queries, keys and values have one in common (Radford et al. 2019).
"""

from lm.checkpoints.hf.family import ACTIVATIONS, Family, Setting
from lm.checkpoints.hf.view import View, in_layers, norm
from lm.config import Config


def _matrix(theirs: str, ours: str, part: tuple[int, int] = (0, 1)) -> tuple[View, ...]:
    return (
        View(f"{theirs}.weight", f"{ours}/kernel", part=part),
        View(f"{theirs}.bias", f"{ours}/bias", part=part),
    )


def _views(_: Config) -> tuple[View, ...]:
    return (
        View("wte.weight", "embedding"),
        View("wpe.weight", "inputs/position_embedding"),
        *in_layers(
            "h.{layer}",
            "stack",
            norm("ln_1", "attention_norm"),
            _matrix("attn.c_attn", "attention/query", (0, 3)),
            _matrix("attn.c_attn", "attention/key", (1, 3)),
            _matrix("attn.c_attn", "attention/value", (2, 3)),
            _matrix("attn.c_proj", "attention/out"),
            norm("ln_2", "feed_forward_norm"),
            _matrix("mlp.c_fc", "feed_forward/in"),
            _matrix("mlp.c_proj", "feed_forward/out"),
        ),
        *norm("ln_f", "stack/final_norm"),
        View("lm_head.weight", "head/table"),
    )


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {"model.architecture": "decoder"},
    (
        Setting("model.num_layers", "n_layer", 12),
        Setting("model.d_model", "n_embd", 768),
        Setting("model.num_heads", "n_head", 12),
        Setting("model.mlp_dim", "n_inner", None),
        Setting("model.activation", "activation_function", "gelu_new", ACTIVATIONS),
        Setting("model.norm_eps", "layer_norm_epsilon", 1e-5),
        Setting("model.max_seq_len", "n_positions", 1024),
        Setting("output.tied", "tie_word_embeddings", True),
    ),
    _views,
    prefix="transformer.",
    outside=("lm_head.",),
    demands={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    ignored=r"\.attn\.(masked_)?bias$|^lm_head\.weight",
)
