"""Reads from a tokenizer.json which tokens are special, which begin words, and, where it is
byte-level, the bytes behind each.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.data.files import parse_json
from lm.data.tokenizer import begins_word
from lm.errors import UserError

MOST_TOKENS = 10_000_000  # more than any vocabulary in use, and little enough for any memory
SENTINEL = re.compile(r"<\|sentinel_(\d+)\|>|<extra_id_(\d+)>")


def parse_tokenizer(text: str, name: str) -> dict[str, Any]:
    """The JSON object that a tokenizer.json is.

    Raises:
      UserError: with its `name`, where it is none, or its tokens are not texts with numbers.
    """
    config = parse_json(text, name)
    model, added = config.get("model"), config.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list):
        raise UserError(
            f"{name} is not a tokenizer.json of Hugging Face tokenizers; save one with "
            "tokenizer.save('tokenizer.json')"
        )
    numbered = vocab.values() if isinstance(vocab, dict) else ()
    pairs = vocab if isinstance(vocab, list) else ()
    if not (
        all(map(is_token, numbered))
        and all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs)
        and isinstance(added, list)
        and all(map(is_entry, added))
        and all(is_token(token.get("id")) for token in added)
    ):
        raise UserError(
            f"{name} has tokens that are no texts with a number below {MOST_TOKENS:,}; it is "
            "damaged, fetch it again"
        )
    return config


def is_token(number: object) -> bool:
    """Whether a value is the number of a token."""
    return type(number) is int and 0 <= number < MOST_TOKENS


def is_entry(entry: object) -> bool:
    """Whether a value is an entry of a tokenizer.json's added tokens, whatever its id."""
    return isinstance(entry, dict) and isinstance(entry.get("content"), str)


def added_tokens(config: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the added tokens, among them those that the settings name, which are special
    whatever the file says of them.
    """
    added = {token["content"]: token for token in config.get("added_tokens") or []}
    vocabulary = vocabulary_of(config["model"])
    for key in ("bos_token", "eos_token", "cls_token", "sep_token", "mask_token"):
        content = settings.get(key)
        if content not in added and content in vocabulary:
            flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
            added[content] = {"id": vocabulary[content], "content": content, **flags}
            config["added_tokens"] = [*(config.get("added_tokens") or []), added[content]]
        if content in added:
            added[content]["special"] = True
    return added


def without_prefix_space(config: dict[str, Any], everywhere: bool) -> dict[str, Any]:
    """A tokenizer.json whose tokenizer puts no space before a text: where it does so only where a
    text begins, or everywhere, also behind special tokens.
    """
    normal, cuts = config.get("normalizer"), config.get("pre_tokenizer")
    schemes = ("first", "always") if everywhere else ("first",)
    stages = cuts.get("pretokenizers", [cuts]) if cuts else []
    for stage in stages:
        if stage.get("prepend_scheme") in schemes:
            stage["prepend_scheme"] = "never"
        if everywhere and stage.get("add_prefix_space"):
            stage["add_prefix_space"] = False
    if everywhere and normal:
        steps = [n for n in normal.get("normalizers", [normal]) if n["type"] != "Prepend"]
        config["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return config


def sentinels_of(added: dict[str, Any]) -> tuple[int, ...]:
    """The ids of the tokens that mark gaps, in the order of their numbers."""
    numbered = [(SENTINEL.fullmatch(key), token["id"]) for key, token in added.items()]
    found = [(int(match[1] or match[2]), i) for match, i in numbered if match]
    return tuple(i for _, i in sorted(found))


def reserved_tokens(config: dict[str, Any], added: dict[str, Any]) -> dict[str, int]:
    """The special tokens, which no text may be encoded to; not the one for unknown text."""
    model = config["model"]
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:  # Unigram
        unknown = model["vocab"][model["unk_id"]][0]
    return {key: t["id"] for key, t in added.items() if t.get("special") and key != unknown}


def word_starts_of(config: dict[str, Any], added: dict[str, Any], vocab_size: int) -> np.ndarray:
    """Boolean [V]: which tokens begin a word.

    Where pieces that continue a word are marked (## of BERT's WordPiece), all others; else those
    that open with a space, its sign (U+2581 of SentencePiece), or what is no letter and no digit.
    """
    model = config["model"]
    marked = model.get("type") == "WordPiece" and model.get("continuing_subword_prefix")
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    byte_level = "ByteLevel" in json.dumps(config.get("pre_tokenizer"))
    starts = np.ones(vocab_size, bool)
    for piece, i in vocabulary_of(model).items():
        if piece in added:
            continue
        if marked:
            starts[i] = not piece.startswith(marked)
        elif byte_level and piece[:1] in byte_of:
            starts[i] = begins_word(bytes([byte_of[piece[:1]]]))
        else:
            starts[i] = not piece[:1].isalnum()
    return starts


def vocabulary_of(model: dict[str, Any]) -> dict[str, int]:
    """The id of each piece; Unigram lists them in order, with their scores."""
    vocab = model["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


def bytes_of_pieces(
    config: dict[str, Any], added: dict[str, Any], end: int, vocab_size: int
) -> list[bytes] | None:
    """The bytes behind each token of a byte-level tokenizer; None for any other kind."""
    stages = config.get("pre_tokenizer") or {}
    stages = stages.get("pretokenizers", [stages])
    levels = [stage for stage in stages if stage.get("type") == "ByteLevel"]
    if config.get("normalizer") or not levels or levels[0].get("add_prefix_space"):
        return None
    model = config["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    if any(character in byte_of for character in prefix):
        return None  # it could not be told from text: ##a would be two hashes and an a
    pieces = ["\ufffd".encode()] * vocab_size
    for piece, i in vocabulary_of(model).items():
        if piece not in added:
            characters = piece.removeprefix(prefix)
            if not byte_of.keys() >= set(characters):
                return None
            pieces[i] = bytes(byte_of[character] for character in characters)
    for content, token in added.items():
        if not token.get("special"):
            pieces[token["id"]] = content.encode("utf-8")
    pieces[end] = b""
    return pieces


def byte_characters() -> list[str]:
    """The printable character that stands for each of the 256 bytes in byte-level tokenizers.

    Radford et al. 2019 (GPT-2): printable Latin-1 stands for itself, the rest for U+0100 onwards.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + i) for i in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]
