"""Maps GPT-2 to a decoder. Its matrices are [in, out] as in Flax, and queries, keys and values have
one in common (Radford et al. 2019).
"""

from lm.checkpoints.hf.family import ACTIVATIONS, Family, KeyMapping
from lm.checkpoints.hf.tensor_mapping import TensorMapping, in_layers, norm
from lm.config import Config


def _matrix(hf: str, param: str, part: tuple[int, int] = (0, 1)) -> tuple[TensorMapping, ...]:
    return (
        TensorMapping(f"{hf}.weight", f"{param}/kernel", part=part),
        TensorMapping(f"{hf}.bias", f"{param}/bias", part=part),
    )


def _mappings(_: Config) -> tuple[TensorMapping, ...]:
    return (
        TensorMapping("wte.weight", "embedding"),
        TensorMapping("wpe.weight", "inputs/position_embedding"),
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
        TensorMapping("lm_head.weight", "head/table"),
    )


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {"model.architecture": "decoder"},
    (
        KeyMapping("model.num_layers", "n_layer", 12),
        KeyMapping("model.d_model", "n_embd", 768),
        KeyMapping("model.num_heads", "n_head", 12),
        KeyMapping("model.mlp_dim", "n_inner", None),
        KeyMapping("model.activation", "activation_function", "gelu_new", ACTIVATIONS),
        KeyMapping("model.norm_eps", "layer_norm_epsilon", 1e-5),
        KeyMapping("model.max_seq_len", "n_positions", 1024),
        KeyMapping("output.tied", "tie_word_embeddings", True),
    ),
    _mappings,
    prefix="transformer.",
    unprefixed=("lm_head.",),
    required={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    ignored=r"\.attn\.(masked_)?bias$|^lm_head\.weight",
)
