"""Checks the values of a checkpoint's config.json, which comes from elsewhere: every key that is
read has a value of its kind, or the file is refused in one line.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lm.errors import UserError

_LARGEST = 2**31 - 1
_DEEPEST = 10_000  # layers
_MOST_LABELS = 1_000_000


def _size(value: object, most: int = _LARGEST) -> bool:
    return type(value) is int and 1 <= value <= most


def _layers(value: object) -> bool:
    return _size(value, _DEEPEST)


def _labels(value: object) -> bool:
    return _size(value, _MOST_LABELS)


def _optional_size(value: object) -> bool:
    return value is None or _size(value)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30


def _switch(value: object) -> bool:
    return type(value) is bool


def _name(value: object) -> bool:
    return type(value) is str


def _rope(value: object) -> bool:
    if value is None:
        return True
    names = ("rope_type", "type")
    return isinstance(value, dict) and (
        _positive(value.get("rope_theta", 1.0))
        and all(value.get(name) is None or _name(value[name]) for name in names)
    )


def _token(value: object) -> bool:
    """One token, several, or none, which some say by -1."""
    several = value if isinstance(value, list) else [value]
    return all(token is None or token == -1 or _count(token) for token in several)


_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")
_SIZES = (
    *("hidden_size", "dim", "n_embd", "d_model", "embedding_size", "vocab_size"),
    *("num_attention_heads", "n_heads", "n_head", "num_heads", "d_kv"),
    *("encoder_attention_heads", "decoder_attention_heads", "decoder_layers"),
    *("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("max_position_embeddings", "n_positions"),
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)
_TOKENS = ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "decoder_start")
_TOKENS += ("forced_bos", "forced_eos")
_KINDS: tuple[tuple[Callable[[Any], bool], str, Iterable[str]], ...] = (
    (_layers, f"a whole number from 1 to {_DEEPEST:,}", _LAYERS),
    (_size, f"a whole number from 1 to {_LARGEST:,}", _SIZES),
    (_labels, f"a whole number from 1 to {_MOST_LABELS:,}", ("num_labels",)),
    (
        _optional_size,
        f"null or a whole number from 1 to {_LARGEST:,}",
        ("n_inner", "num_key_value_heads", "head_dim", "num_decoder_layers"),
    ),
    (_count, f"a whole number from 0 to {_LARGEST:,}", ("type_vocab_size",)),
    (
        _positive,
        "a number above 0 and below 1e30",
        ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "rope_theta"),
    ),
    (
        _switch,
        "true or false",
        ("tie_word_embeddings", "scale_embedding", "scale_decoder_outputs"),
    ),
    (
        _name,
        "a name",
        ("hidden_act", "activation", "activation_function", "feed_forward_proj"),
    ),
    (
        _rope,
        "null or an object with a rope_type and a rope_theta",
        ("rope_parameters", "rope_scaling"),
    ),
    (_token, "null, a token's number or a list of them", [f"{x}_token_id" for x in _TOKENS]),
)
KINDS = {key: (fits, what) for fits, what, keys in _KINDS for key in keys}


def check_values(hf_config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for the first key of a config.json, found at `where`, whose value is of
    another kind than the key's, or where there is no vocab_size.
    """
    for key, (fits, what) in KINDS.items():
        if key in hf_config and not fits(hf_config[key]):
            raise UserError(
                f"{where} has {key} = {repr(hf_config[key])[:60]}, which is not {what}; it is "
                "damaged, fetch it again"
            )
    if "vocab_size" not in hf_config:
        raise UserError(f"{where} has no vocab_size; give a folder that transformers saved")


def first_token(hf_config: Mapping[str, Any], key: str, default: int) -> int:
    """The token that a checked key names, the first of several; `default` where it names none."""
    value = hf_config.get(key)
    several = value if isinstance(value, list) else [value]
    return next((token for token in several if token is not None), default)
