"""Checks the values of a checkpoint's config.json, which comes from elsewhere: every key that is
read has a value of its kind, or the file is refused in one line.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lm.errors import UserError

_LARGEST = 2**31 - 1
Kind = tuple[Callable[[Any], bool], str]  # whether a value fits, and what it should be


def _whole(least: int, most: int = _LARGEST) -> Kind:
    text = f"a whole number from {least} to {most:,}"
    return lambda value: type(value) is int and least <= value <= most, text


def _or_null(kind: Kind) -> Kind:
    return lambda value: value is None or kind[0](value), f"null or {kind[1]}"


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30


def _rope(value: object) -> bool:
    return isinstance(value, dict) and (
        _positive(value.get("rope_theta", 1.0))
        and all(isinstance(value.get(name), str | None) for name in ("rope_type", "type"))
    )


def _token(value: object) -> bool:
    """One token, several, or none, which some say by -1."""
    several = value if isinstance(value, list) else [value]
    return all(x is None or (type(x) is int and -1 <= x <= _LARGEST) for x in several)


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
_SWITCHES = ("tie_word_embeddings", "scale_embedding", "scale_decoder_outputs")
_NAMES = ("hidden_act", "activation", "activation_function", "feed_forward_proj")
_NUMBERS = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "rope_theta")
_DERIVED = ("n_inner", "num_key_value_heads", "head_dim", "num_decoder_layers")
_ROPE = (_rope, "an object with a rope_type and a rope_theta")
_KINDS: tuple[tuple[Kind, Iterable[str]], ...] = (
    (_whole(1, 10_000), _LAYERS),
    (_whole(1), _SIZES),
    (_whole(1, 1_000_000), ("num_labels",)),
    (_or_null(_whole(1)), _DERIVED),
    (_whole(0), ("type_vocab_size",)),
    ((_positive, "a number above 0 and below 1e30"), _NUMBERS),
    ((lambda value: type(value) is bool, "true or false"), _SWITCHES),
    ((lambda value: type(value) is str, "a name"), _NAMES),
    (_or_null(_ROPE), ("rope_parameters", "rope_scaling")),
    ((_token, "null, a token's number or a list of them"), [f"{x}_token_id" for x in _TOKENS]),
)
KINDS = {key: kind for kind, keys in _KINDS for key in keys}


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
