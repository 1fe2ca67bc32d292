"""Decodes tokens of the library `tokenizers` to text, and keeps every byte that is UTF-8: a
character may be several tokens, and some tokens are a byte.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm.data.tokenizer import decode_utf8
from lm.data.tokenizer_json import byte_characters

if TYPE_CHECKING:
    import tokenizers

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 4  # bytes of a character


class Decoder:
    """Decodes as the tokenizer's own file says; special tokens are left out.

    The library's own decoder takes all bytes of a run for U+FFFD where one of them is wrong, or the
    last character lacks some; here only those are.
    """

    def __init__(
        self, backend: "tokenizers.Tokenizer", config: Mapping[str, Any], added: Mapping[str, Any]
    ):
        """Takes a tokenizer, the content of its file, and its added tokens by name."""
        self._backend = backend
        self._special = {token["id"] for token in added.values() if token.get("special")}
        self._byte_of: dict[int, int] = {}
        if "ByteFallback" in str(config.get("decoder")):
            found = ((_BYTE.fullmatch(key), i) for key, i in backend.get_vocab().items())
            self._byte_of = {i: int(match[1], 16) for match, i in found if match}

    def __call__(self, ids: Sequence[int], final: bool) -> str:
        """The text of `ids`; unless `final`, without a last character that lacks bytes."""
        if self._byte_of:
            return self._backend.decoder.decode(self._pieces(ids, final))
        text = self._backend.decode(ids, skip_special_tokens=True)
        if final or not text.endswith(_REPLACEMENT):
            return text
        return text[:-1] if self._lacking(ids[-_LONGEST:]) else text

    def _pieces(self, ids: Sequence[int], final: bool) -> list[str]:
        """What stands for the tokens in the vocabulary, runs of bytes as their text."""
        shown = [i for i in ids if i not in self._special]
        runs = [(k, list(run)) for k, run in itertools.groupby(shown, self._byte_of.__contains__)]
        pieces = []
        for number, (is_bytes, run) in enumerate(runs, start=1):
            if is_bytes:
                whole = final or number < len(runs)
                pieces.append(decode_utf8(bytes(self._byte_of[i] for i in run), whole))
            else:
                pieces += filter(None, map(self._backend.id_to_token, run))
        return pieces

    def _lacking(self, ids: Sequence[int]) -> bool:
        """Whether the pieces of a byte-level tokenizer end within a character."""
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        pieces = (self._backend.id_to_token(i) or "" for i in ids)
        data = bytes(byte_of.get(c, ord("?")) for piece in pieces for c in piece)
        return len(decode_utf8(data, final=False)) < len(decode_utf8(data))
