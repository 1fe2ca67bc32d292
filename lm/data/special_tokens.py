"""The special tokens that stand around texts: those of a tokenizer's post-processor, and those of
an encoder-decoder such as T5 (config.special_tokens).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm.config import Config
from lm.errors import UserError

if TYPE_CHECKING:
    import tokenizers

# Classes of transformers that put bos_token first where neither a post-processor nor add_bos_token
# says whether it is.
_OPENING = ("Llama", "CodeLlama", "Gemma", "Cohere")


class SpecialTokens(NamedTuple):
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
    def opened_by(cls, before: tuple[int, ...]) -> "SpecialTokens":
        """Nothing closes a text, or stands between two."""
        return cls(before, (), (), ())

    @classmethod
    def closed_by(cls, before: tuple[int, ...], end: int) -> "SpecialTokens":
        """One token closes every text."""
        return cls(before, (end,), (end,), (end,))


def post_processed(backend: "tokenizers.Tokenizer") -> SpecialTokens | None:
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
    return SpecialTokens(
        before=tuple(one.ids[:place]),
        after=tuple(one.ids[place + 1 :]),
        between=tuple(two.ids[first + 1 : second]),
        last=tuple(two.ids[second + 1 :]),
        second_type=two.type_ids[second],
    )


def specials(
    post: SpecialTokens | None, settings: Mapping[str, Any], bos: int | None, end: int
) -> SpecialTokens:
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
        return SpecialTokens.closed_by((end if bos is None else bos,), end)
    adds_bos = settings.get("add_bos_token")
    before = () if post is None else post.before
    if adds_bos is None and post is None:
        made = settings.get("tokenizer_class", "")
        adds_bos = not made or made.removesuffix("Fast").removesuffix("Tokenizer") in _OPENING
    if bos is not None and adds_bos is not None and (before[:1] == (bos,)) != adds_bos:
        before = (bos, *before) if adds_bos else before[1:]
    if post is None or not post.after:
        return SpecialTokens.closed_by(before, end)
    return post._replace(before=before)


class EncoderDecoderTokens(NamedTuple):
    """Token ids around the texts that an encoder-decoder reads and writes.

    Attributes:
      before, after: what opens and what closes a text that the encoder reads.
      opens: what the decoder's text begins with; END closes it.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    opens: tuple[int, ...]

    def encoder_input(self, ids: Sequence[int] | np.ndarray, room: int | None = None) -> np.ndarray:
        """A text as the encoder reads it; where it has more than `room` tokens, without its end."""
        around = len(self.before) + len(self.after)
        kept = ids if room is None else ids[: max(room - around, 0)]
        return np.concatenate([self.before, kept, self.after]).astype(np.int32)

    def decoder_start(self) -> np.ndarray:
        """What the decoder's text begins with, as an array."""
        return np.array(self.opens, np.int32)


def encoder_decoder_tokens(ids: Sequence[Sequence[int]] | None, end: int) -> EncoderDecoderTokens:
    """Those of config.special_tokens; None: END opens both texts."""
    if ids is None:
        return EncoderDecoderTokens((end,), (), (end,))
    return EncoderDecoderTokens(*map(tuple, ids))


def check_special_tokens(config: Config) -> None:
    """Raises UserError where config.special_tokens are not three tuples of token ids."""
    if config.special_tokens is None:
        return
    parts = [part for part in config.special_tokens if isinstance(part, list | tuple)]
    ids = [number for part in parts for number in part]
    if not (len(parts) == len(config.special_tokens) == 3 and parts[2]) or not all(
        isinstance(number, int) and number >= 0 for number in ids
    ):
        raise UserError(
            f"config.special_tokens = {config.special_tokens}: must be three tuples of token ids, "
            "the last not empty, such as ((), (1,), (0,))"
        )
