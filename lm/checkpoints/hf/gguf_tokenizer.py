"""Makes a tokenizer.json of a GGUF file's tokenizer: tokens and merges are byte-level BPE ("gpt2"),
tokens and scores SentencePiece's BPE ("llama").
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lm.checkpoints.hf.sentencepiece import BPE, CONTROL, NORMAL, USER_DEFINED, from_model
from lm.errors import UserError

# How text is cut into words: by runs of letters, of digits, of other signs, and of spaces.
_RUNS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORD_PATTERNS = {
    "gpt-2": None,
    "smollm": None,
    "qwen2": _RUNS.replace("DIGITS", ""),
    "llama-bpe": _RUNS.replace("DIGITS", "{1,3}"),
}
# The tokens that a file names by their numbers.
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}


def from_gguf(path: Path, found: Mapping[str, Any]) -> Any:
    """The tokenizer of what a file says of it, `read_tokenizer_fields`.

    Raises:
      UserError: the file has none, or one of another kind.
    """
    kinds = {"gpt2": _byte_level, "llama": _pieces}
    if str(found.get("model")) not in kinds or "tokens" not in found:
        raise UserError(
            f"{path} has a tokenizer of kind {found.get('model')!r}, none of {', '.join(kinds)}; "
            "put its tokenizer.json beside it"
        )
    try:
        return kinds[found["model"]](path, found)
    except UserError:
        raise
    except Exception as error:  # of any kind, as `tokenizers` raises
        raise UserError(
            f"{path} has a tokenizer that cannot be made ({' '.join(str(error).split())}); put its "
            "tokenizer.json beside it"
        ) from None


def named_tokens(found: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a file names by their numbers, by their names in transformers."""
    tokens = found.get("tokens", ())
    numbers = {name: found.get(key, -1) for name, key in _NAMED.items()}
    return {name: tokens[i] for name, i in numbers.items() if 0 <= i < len(tokens)}


def special_token_settings(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its special tokens, as `lm.data.special_tokens.read_settings` has it.

    Where `add_bos_token` is not said, kind "llama" and words cut as "llama-bpe" open with
    bos_token, and others do not, as llama.cpp has it.
    """
    settings: dict[str, Any] = named_tokens(found)
    opens = found.get("model") == "llama" or found.get("pre") == "llama-bpe"
    settings["add_bos_token"] = bool(found.get("add_bos_token", opens))
    if isinstance(found.get("chat_template"), str):
        settings["chat_template"] = found["chat_template"]
    return settings


def _byte_level(path: Path, found: Mapping[str, Any]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as cuts

    kind = str(found.get("pre"))
    if kind not in WORD_PATTERNS or "merges" not in found:
        raise UserError(
            f"{path} cuts text into words as {kind!r} does, none of {', '.join(WORD_PATTERNS)}; "
            "put its tokenizer.json beside it"
        )
    numbers = {token: number for number, token in enumerate(found["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in found["merges"]]
    for pair in merges:  # `tokenizers` would panic
        if len(pair) != 2 or not {*pair, "".join(pair)} <= numbers.keys():
            raise UserError(
                f"{path} merges {' '.join(pair)!r} to none of its tokens; it is damaged, fetch it "
                "again"
            )
    tokenizer = Tokenizer(models.BPE(numbers, merges, ignore_merges=kind == "llama-bpe"))
    steps: list[Any] = [cuts.Digits(individual_digits=True)] if kind == "smollm" else []
    if (pattern := WORD_PATTERNS[kind]) is not None:
        steps.append(cuts.Split(Regex(pattern), "isolated"))
    steps.append(cuts.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cuts.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind_of in zip(found["tokens"], _types(found), strict=True):
        if kind_of in (CONTROL, USER_DEFINED):
            special = kind_of == CONTROL
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])
    return tokenizer


def _pieces(path: Path, found: Mapping[str, Any]) -> Any:
    if "scores" not in found:
        raise UserError(f"{path} has pieces without scores; put its tokenizer.json beside it")
    rows = zip(found["tokens"], found["scores"], _types(found), strict=True)
    unknown = found.get("unknown_token_id", 0)
    model = SimpleNamespace(
        pieces=[SimpleNamespace(piece=p, score=score, type=kind) for p, score, kind in rows],
        trainer_spec=SimpleNamespace(
            model_type=BPE,
            unk_id=unknown,
            unk_piece=found["tokens"][unknown],
            byte_fallback=True,
            split_by_whitespace=True,
        ),
        normalizer_spec=SimpleNamespace(
            precompiled_charsmap=b"",
            remove_extra_whitespaces=False,
            add_dummy_prefix=found.get("add_space_prefix", True),
        ),
    )
    return from_model(path, model, {})


def _types(found: Mapping[str, Any]) -> Sequence[int]:
    """SentencePiece's number of each token's kind; bos and eos are no text, whatever it says."""
    types = list(found.get("token_type") or [NORMAL] * len(found["tokens"]))
    for number in (found.get("bos_token_id", -1), found.get("eos_token_id", -1)):
        if 0 <= number < len(types) and types[number] == NORMAL:
            types[number] = CONTROL
    return types
