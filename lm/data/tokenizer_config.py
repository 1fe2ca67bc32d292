"""Reads the files beside a tokenizer.json: tokenizer_config.json, special_tokens_map.json,
added_tokens.json and chat_template.jinja.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.data.files import read_json_if_exists, read_text
from lm.errors import UserError

# Files beside a tokenizer.json that are read here.
FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_WIDEST_GAP = 10_000  # ids that no token has, between a vocabulary and what was added to it


def read_config(folder: Path) -> dict[str, Any]:
    """A tokenizer_config.json, and what special_tokens_map.json and chat_template.jinja say
    besides; {} where there is none of these.

    Raises:
      UserError: a file is no JSON object.
    """
    names, config = (read_json_if_exists(folder / name) for name in FILES[1::-1])
    if (file := folder / FILES[3]).is_file():
        config["chat_template"] = read_text(file)
    return names | config


def read_settings(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer.json say, of plain values.

    Returns:
      Those that are said of "bos_token", "eos_token", ... (texts), "add_bos_token", "chat_template"
      and "tokenizer_class"; and "added_tokens", {id: its entry as in a tokenizer.json}.

    Raises:
      UserError: a file is no JSON object.
    """
    found = read_config(folder)
    named = {name: token_text(found.get(name)) for name in _NAMES}
    settings: dict[str, Any] = {name: text for name, text in named.items() if text is not None}
    for name, kind in (("add_bos_token", bool), ("tokenizer_class", str)):
        if isinstance(found.get(name), kind):
            settings[name] = found[name]
    template = found.get("chat_template")
    if isinstance(template, list):  # several by name
        several = [each for each in template if isinstance(each, dict)]
        wanted = (each.get("template") for each in several if each.get("name") == "default")
        template = next(wanted, None)
    if isinstance(template, str):
        settings["chat_template"] = template
    names = read_json_if_exists(folder / FILES[1])
    roles = (*settings.values(), *_listed(found), *_listed(names))
    added = [
        (number, {"content": content, "special": content in roles})
        for content, number in read_json_if_exists(folder / FILES[2]).items()
    ]
    decoder = found.get("added_tokens_decoder") or {}
    if isinstance(decoder, dict):
        added += [
            (int(n) if n.isdecimal() and len(n) < 20 else n, entry) for n, entry in decoder.items()
        ]
    for number, entry in added:
        texts = isinstance(entry, dict) and isinstance(entry.get("content"), str)
        if type(number) is not int or number < 0 or not texts:
            raise UserError(
                f"the files in {folder} have the added token {str(entry)[:60]} as number "
                f"{str(number)[:20]}, which is no text with a number; fetch them again"
            )
    if added:
        settings["added_tokens"] = dict(sorted(dict(added).items()))
    return settings


def _listed(found: dict[str, Any]) -> list[str]:
    """The special tokens without a role that a file lists."""
    listed = found.get("additional_special_tokens")
    return [token_text(token) or "" for token in listed] if isinstance(listed, list) else []


def token_text(token: object) -> str | None:
    """The text of a token, which may be given with its flags."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def with_added(text: str, added: Mapping[int, Mapping[str, Any]], name: str) -> str:
    """A tokenizer.json that also has these tokens, at these ids, where it lacks them.

    Raises:
      UserError: such an id has another token, or the token another id.
    """
    from tokenizers import AddedToken, Tokenizer

    known = {token["content"] for token in json.loads(text).get("added_tokens") or []}
    added = {number: entry for number, entry in added.items() if entry["content"] not in known}
    if not added:
        return text
    tokenizer = Tokenizer.from_str(text)
    flags = ("lstrip", "rstrip", "normalized", "single_word")
    for number, entry in sorted(added.items()):
        content, special = entry["content"], bool(entry.get("special"))
        if number - tokenizer.get_vocab_size() > _WIDEST_GAP:
            raise UserError(
                f"the files beside {name} have {content!r:.60} as token {number}, far beyond its "
                f"{tokenizer.get_vocab_size()} tokens; fetch them again"
            )
        # An id that is left out stands for nothing, as a token that no text has.
        for empty in range(tokenizer.get_vocab_size(), number):
            tokenizer.add_special_tokens([f"<|id {empty} is no token|>"])
        kept = {flag: bool(entry.get(flag, flag == "normalized" and not special)) for flag in flags}
        tokenizer.add_tokens([AddedToken(content, special=special, **kept)])
        if tokenizer.token_to_id(content) != number:
            raise UserError(
                f"{name} has {content!r} as token {tokenizer.token_to_id(content)}, and the files "
                f"beside it as {number}; fetch them again"
            )
    return tokenizer.to_str()
