"""What the files of a tokenizer say of its special tokens: their names, which of them stand around
texts, which were added to its vocabulary, and the template that writes conversations.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
# Classes of transformers that put bos_token first where neither a post-processor nor add_bos_token
# says whether it is.
_OPENING = ("Llama", "CodeLlama", "Gemma", "Cohere")
_WIDEST_GAP = 10_000  # ids that no token has, between a vocabulary and what was added to it


class Specials(NamedTuple):
    """Ids of the special tokens around one text, `before a after`, and around two, `before a
    between b last`.

    Attributes:
      before: may be empty; also opens a text that is to be continued.
      second_type: the token type of the second text and of what closes it.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]
    last: tuple[int, ...]
    second_type: int = 1

    @classmethod
    def opened_by(cls, before: tuple[int, ...]) -> "Specials":
        """Nothing closes a text, or stands between two."""
        return cls(before, (), (), ())

    @classmethod
    def closed_by(cls, before: tuple[int, ...], end: int) -> "Specials":
        """One token closes every text."""
        return cls(before, (end,), (end,), (end,))


def read_settings(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer.json say, of plain values.

    Returns:
      Those that are said of "bos_token", "eos_token", ... (texts), "add_bos_token", "chat_template"
      and "tokenizer_class"; and "added_tokens", {id: its entry as in a tokenizer.json}.

    Raises:
      UserError: a file is no JSON object.
    """
    found, names = (read_json_if_exists(folder / name) for name in FILES[:2])
    settings: dict[str, Any] = {
        name: _content(found.get(name, names.get(name)))
        for name in _NAMES
        if _content(found.get(name, names.get(name))) is not None
    }
    for name, kind in (("add_bos_token", bool), ("tokenizer_class", str)):
        if isinstance(found.get(name), kind):
            settings[name] = found[name]
    template = found.get("chat_template")
    if isinstance(template, list):  # several by name
        named = [each for each in template if isinstance(each, dict)]
        wanted = (each.get("template") for each in named if each.get("name") == "default")
        template = next(wanted, None)
    if (file := folder / FILES[3]).is_file():
        template = read_text(file)
    if isinstance(template, str):
        settings["chat_template"] = template
    more = [*_listed(found), *_listed(names)]
    roles = (*settings.values(), *more)
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
    return [_content(token) or "" for token in listed] if isinstance(listed, list) else []


def _content(token: Any) -> str | None:
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


def post_processed(backend: Any) -> Specials | None:
    """What the post-processor of a tokenizer puts around texts; None where it has none.

    Args:
      backend: of the library `tokenizers`.
    """
    from tokenizers import Tokenizer, models

    if backend.post_processor is None:
        return None
    plain = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    plain.post_processor = backend.post_processor
    one, two = plain.encode("a"), plain.encode("a", "a")
    (place,) = (i for i, text in enumerate(one.sequence_ids) if text == 0)
    first, second = (two.sequence_ids.index(number) for number in (0, 1))
    return Specials(
        before=tuple(one.ids[:place]),
        after=tuple(one.ids[place + 1 :]),
        between=tuple(two.ids[first + 1 : second]),
        last=tuple(two.ids[second + 1 :]),
        second_type=two.type_ids[second],
    )


def specials(
    post: Specials | None, settings: Mapping[str, Any], bos: int | None, end: int
) -> Specials:
    """What stands around texts, by all that is known.

    `add_bos_token` decides whether bos_token stands first; where it is not said, the post-processor
    does; where there is none, the tokenizer's class. Where nothing at all is said, `bos` or else
    `end` opens a text. A text that nothing closes is closed by `end`.

    Args:
      post: of the post-processor, or None.
      settings: those of `read_settings`.
      bos, end: ids; None where no bos_token is known.
    """
    if post is None and not settings:
        return Specials.closed_by((end if bos is None else bos,), end)
    said = settings.get("add_bos_token")
    before = () if post is None else post.before
    if said is None and post is None:
        made = settings.get("tokenizer_class", "")
        said = not made or made.removesuffix("Fast").removesuffix("Tokenizer") in _OPENING
    if bos is not None and said is not None and (before[:1] == (bos,)) != said:
        before = (bos, *before) if said else before[1:]
    if post is None or not post.after:
        return Specials.closed_by(before, end)
    return post._replace(before=before)
