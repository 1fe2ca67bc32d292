"""How do prompts become tokens, and tokens text? Texts end where the document ends, or before a
stop string.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lm.data import Tokenizer


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


def stream(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    tokens: Iterator[np.ndarray],
    stops: Sequence[str] = (),
) -> Iterator[str]:
    """Yields printable pieces: the first text as it grows, then each other text whole.

    A text ends where the model closes the document, or before the first of the `stops`, which may
    not be empty.
    """
    drawn: list[list[int]] = [[] for _ in prompts]
    ended = np.zeros(len(prompts), bool)
    shown = ""
    yield prompts[0]
    for step in tokens:
        ended |= step == tokenizer.end
        for row in np.flatnonzero(~ended):
            drawn[row].append(int(step[row]))
            if stops or row == 0:
                text, ended[row] = cut(tokenizer.decode(np.array(drawn[row])), stops)
                if row == 0:
                    grown = text if ended[0] else text[: _certain(text, stops)]
                    yield grown[len(shown) :]
                    shown = max(shown, grown, key=len)
        if ended.all():
            break
    texts = [cut(tokenizer.decode(np.array(ids, int)), stops)[0] for ids in drawn]
    yield texts[0].rstrip("\N{REPLACEMENT CHARACTER}")[len(shown) :] + "\n"
    for prompt, text in zip(prompts[1:], texts[1:], strict=True):
        yield f"{'-' * 8}\n{prompt}{text}\n"


def _certain(text: str, stops: Sequence[str]) -> int:
    """How much of a growing text will stay: its end may lack bytes, or begin a stop string."""
    whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
    begun = (size for stop in stops for size in range(1, len(stop)) if whole.endswith(stop[:size]))
    return len(whole) - max(begun, default=0)
