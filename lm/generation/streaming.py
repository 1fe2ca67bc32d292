"""Decodes generated tokens to text as they arrive, up to the end of the text or a stop string."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data import Tokenizer

_CONTEXT = 16  # tokens, at least, before those that are decoded
_CHUNK = 64  # tokens after which their text is kept, and they are not decoded again


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop strings, and whether there was one."""
    found = [index for stop in stops if (index := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


class Continuation:
    """The text of a prompt's new tokens as they arrive, up to END or to the first stop string.

    It is decoded after the prompt's own tokens, on which the first space of a word, or the other
    bytes of a character, may depend. A last character that lacks bytes is left out.

    Attributes:
      ended: whether the text is complete.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int] | np.ndarray, stops: Sequence[str] = ()
    ):
        """Starts after a prompt's token ids; `stops` may not be empty texts."""
        self.ended = False
        self._tokenizer, self._stops = tokenizer, stops
        # A stop string may be a special token, which is not decoded to text.
        special = (tokenizer.markers.get(stop.strip()) for stop in stops)
        self._ends = {tokenizer.end, *(marker.token for marker in special if marker)}
        self._settled = ""  # text that no further token changes
        self._restart_after([int(token) for token in prompt])

    def add(self, token: int) -> None:
        """Adds the next token; tokens after the end are ignored."""
        self.ended |= token in self._ends
        if not self.ended:
            self._tokens.append(token)
            if len(self._tokens) >= self._prompt_size + _CHUNK and not self._lacks(self._tokens):
                self._settled = self._whole()
                self._restart_after(self._tokens)
            # Without stop strings the text is decoded only when it is read.
            self.ended = bool(self._stops) and cut_at_stop(self._whole(), self._stops)[1]

    @property
    def text(self) -> str:
        """The text so far."""
        return cut_at_stop(self._whole(), self._stops)[0]

    @property
    def certain(self) -> str:
        """The part that no further token changes: its end may be the start of a stop string."""
        text = self.text
        if self.ended:
            return text
        starts = (stop[:n] for stop in self._stops for n in range(1, len(stop)))
        partial = (len(start) for start in starts if text.endswith(start))
        return text[: len(text) - max(partial, default=0)]

    def _whole(self) -> str:
        both = self._tokenizer.decode(self._tokens, final=False)
        pairs = zip(both, self._before, strict=False)
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return self._settled + both[alike:]

    def _restart_after(self, tokens: list[int]) -> None:
        """Decodes further tokens after the last of these, whose text is known."""
        begin = max(len(tokens) - _CONTEXT, 0)
        # Not within a character, whose bytes would decode to other characters.
        while begin > 0 and self._lacks(tokens[:begin]):
            begin -= 1
        self._tokens = tokens[begin:]
        self._prompt_size = len(self._tokens)
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
    """Yields printable pieces: the first text as it grows, then every other text at once.

    Args:
      prompts: B texts, which are shown before their continuations.
      ids: the token ids of each.
      tokens: for each step, the next token of every prompt, [B].
      stops: texts before which a continuation ends, not empty.
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
