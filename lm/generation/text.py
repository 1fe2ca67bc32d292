"""How do prompts become tokens, and tokens text? Texts end where the document ends, or before a
stop string.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data import Tokenizer

_CONTEXT = 16  # tokens, at least, behind which those that follow are decoded
_SETTLED = 64  # tokens after which their text is kept, and they are not decoded again


def prompt_ids(
    tokenizer: Tokenizer, prompts: Sequence[str], opens: Sequence[int]
) -> list[np.ndarray]:
    """Token ids of prompts, each behind the tokens that open a text."""
    encoded = tokenizer.encode_batch(list(prompts))
    return [opened(tokenizer, each.ids, opens) for each in encoded]


def opened(tokenizer: Tokenizer, ids: np.ndarray, opens: Sequence[int]) -> np.ndarray:
    """A text behind the tokens that open it; nothing at all is the token that predicts the first
    one of a text, as there must be something to go on from.
    """
    whole = np.concatenate([opens, ids]).astype(np.int32)
    return whole if len(whole) else np.array([tokenizer.start], np.int32)


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop strings, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


class Continuation:
    """The text of a prompt's next tokens, as they come: up to END, or to the first stop string.

    It goes on from the prompt's own tokens, as a word's first space, or a character's other bytes,
    may depend on them. A last character that lacks bytes is left out.

    Attributes:
      ended: nothing more will be added.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int] | np.ndarray, stops: Sequence[str] = ()
    ):
        """Begins behind a prompt's token ids; `stops` may not be empty texts."""
        self.ended = False
        self._tokenizer, self._stops = tokenizer, stops
        # A stop string that is a special token is no text, and ends one all the same.
        special = (tokenizer.markers.get(stop.strip()) for stop in stops)
        self._ends = {tokenizer.end, *(marker.token for marker in special if marker)}
        self._settled = ""  # text that no further token changes
        self._go_on_behind([int(token) for token in prompt])

    def add(self, token: int) -> None:
        """Takes the next token; what comes behind the end is not looked at."""
        self.ended |= token in self._ends
        if not self.ended:
            self._tokens.append(token)
            if len(self._tokens) >= self._given + _SETTLED and not self._lacks(self._tokens):
                self._settled = self._whole()
                self._go_on_behind(self._tokens)
            # Without stop strings the text is needed only when it is asked for.
            self.ended = bool(self._stops) and cut(self._whole(), self._stops)[1]

    @property
    def text(self) -> str:
        """What was written so far."""
        return cut(self._whole(), self._stops)[0]

    @property
    def certain(self) -> str:
        """As much of it as no further token changes: its end may begin a stop string."""
        text = self.text
        if self.ended:
            return text
        begun = (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return text[: len(text) - max(begun, default=0)]

    def _whole(self) -> str:
        both = self._tokenizer.decode(self._tokens, final=False)
        pairs = zip(both, self._before, strict=False)
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return self._settled + both[alike:]

    def _go_on_behind(self, tokens: list[int]) -> None:
        """Decodes what follows behind the last of these tokens, whose text is known."""
        begin = max(len(tokens) - _CONTEXT, 0)
        # Not within a character: its bytes would spoil those beside it.
        while begin > 0 and self._lacks(tokens[:begin]):
            begin -= 1
        self._tokens = tokens[begin:]
        self._given = len(self._tokens)
        self._before = self._tokenizer.decode(self._tokens)

    def _lacks(self, tokens: list[int]) -> bool:
        """Whether the last character of tokens lacks bytes."""
        last = tokens[-_CONTEXT:]
        return self._tokenizer.decode(last) != self._tokenizer.decode(last, final=False)


def stream(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    ids: Sequence[np.ndarray],
    tokens: Iterable[np.ndarray],
    stops: Sequence[str] = (),
) -> Iterator[str]:
    """Yields printable pieces: the first text as it grows, then each other text whole.

    Args:
      tokenizer: of the model.
      prompts: B texts, which are shown before their continuations.
      ids: the tokens of each, from which its continuation goes on.
      tokens: of each step, the next token of every prompt, [B].
      stops: a text ends before the first of these, which may not be empty.
    """
    texts = [Continuation(tokenizer, each, stops) for each in ids]
    shown = ""
    yield prompts[0]
    for step in tokens:
        for text, token in zip(texts, step.tolist(), strict=True):
            text.add(token)
        grown = texts[0].certain
        yield grown[len(shown) :]
        shown = max(shown, grown, key=len)
        if all(text.ended for text in texts):
            break
    yield texts[0].text[len(shown) :] + "\n"
    for prompt, text in zip(prompts[1:], texts[1:], strict=True):
        yield f"{'-' * 8}\n{prompt}{text.text}\n"
