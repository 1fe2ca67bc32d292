"""Encodes conversations, to train on the assistant's answers and to ask for the next one; both are
written by one template and tokenized as a whole.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.data.chat_template import Messages, template_of
from lm.data.inline_special_tokens import BEGINS, END, ENDS, encode_marked, quoted
from lm.data.tokenizer import Encoded, Tokenizer
from lm.errors import UserError


class ChatTokens(NamedTuple):
    """Tokens of a conversation, and which of them the assistant writes."""

    ids: np.ndarray  # int32 [n]
    counts: np.ndarray  # int32 [n]: 1 in answers and what closes them


class _MarkedText(NamedTuple):
    """A marked text and the answers in it: their first and last + 1 character."""

    text: str
    answers: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Chat:
    """How a tokenizer's conversations are written.

    Attributes:
      tokenizer: of the tokens.
      name: of the template; see `template_of`.
    """

    tokenizer: Tokenizer
    name: str = ""

    def render(self, messages: Messages, ask: bool = True) -> str:
        """Messages as a marked text, and what stands before the next answer."""
        text = self._marked(messages, ask)
        return text.replace(BEGINS, "").replace(ENDS, "")

    def encode_prompt(self, messages: Messages) -> np.ndarray:
        """The tokens that the assistant's next answer follows."""
        (part,) = encode_marked(self.tokenizer, [self.render(messages)])
        return self._opened(part).ids

    def encode_training(self, conversations: Sequence[Messages]) -> list[list[ChatTokens]]:
        """What each conversation teaches: mostly one text.

        An answer that the template writes otherwise where more is said after it, such as one whose
        thoughts are left out later, is a text of its own, as it was when it was asked for.
        """
        texts = [self._texts(messages) for messages in conversations]
        encoded = iter(encode_marked(self.tokenizer, [x.text for each in texts for x in each]))
        found = []
        for each in texts:
            said = []
            for written in each:
                part = next(encoded)
                counts = np.zeros(len(part.ids), np.int32)
                for begin, end in written.answers:
                    first = len(written.text[:begin].encode())
                    answer = written.text[begin:end].encode()
                    counts[part.within(first, first + len(answer))] = 1
                said.append(self._opened(part, counts))
            found.append(said)
        return found

    @functools.cached_property
    def closes(self) -> int:
        """The token that closes an answer: a special one of the template, or `end`."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        ((said,),) = self.encode_training([messages])
        last = int(said.ids[np.flatnonzero(said.counts)[-1]])
        special = {marker.token for marker in self.tokenizer.markers.values()}
        return last if last in special else self.tokenizer.end

    @property
    def opens(self) -> tuple[int, ...]:
        """What opens a conversation; a checkpoint's own template writes that itself."""
        own = not self.name and "chat_template" in self.tokenizer.settings
        return () if own else self.tokenizer.specials.before

    @property
    def stops(self) -> tuple[str, ...]:
        """The names of the token that closes an answer, where it is not `end`."""
        named = self.tokenizer.markers.items()
        return tuple(name for name, marker in named if marker.token == self.closes)

    def _opened(self, part: Encoded, counts: np.ndarray | None = None) -> ChatTokens:
        counts = np.zeros(len(part.ids), np.int32) if counts is None else counts
        ids = np.concatenate([self.opens, part.ids]).astype(np.int32)
        return ChatTokens(ids, np.append(np.zeros(len(self.opens), np.int32), counts))

    def _marked(self, messages: Messages, ask: bool) -> str:
        kept = [self._quoted(message) for message in messages]
        return template_of(self.name, self.tokenizer)(kept, ask)

    def _quoted(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message of which all texts but the role, which a template compares, stay text."""
        return {
            key: quoted(value, self.tokenizer)
            if isinstance(value, str) and key != "role"
            else value
            for key, value in message.items()
        }

    def _texts(self, messages: Messages) -> list[_MarkedText]:
        marked = self._marked(messages, False)
        if BEGINS in marked:
            return [_unmarked(marked)]
        whole, texts = _MarkedText(marked, []), []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self.render(messages[:number])
            said = self.render(messages[: number + 1], False)
            if not said.startswith(asked):
                raise UserError(
                    f"the chat_template of {self.tokenizer.name} writes an answer otherwise than it"
                    " asks for one; mark what the assistant says in it by {% generation %} and "
                    "{% endgeneration %}, or name another in config.task.template"
                )
            answer = len(asked), self._end(said)
            if whole.text.startswith(said[: answer[1]]):
                whole.answers.append(answer)
            else:
                texts.append(_MarkedText(said, [answer]))
        return [*texts, whole] if whole.answers else texts

    def _end(self, said: str) -> int:
        """Where an answer ends: behind a special token that closes it, or where the text does."""
        closed = said.rstrip()
        names = (END, *self.tokenizer.markers)
        return len(closed) if closed.endswith(names) else len(said)


def _unmarked(text: str) -> _MarkedText:
    """Without the marks of answers, which become their places."""
    found, answers = "", []
    for part in text.split(BEGINS):
        answer, marked, behind = part.partition(ENDS)
        if marked:
            answers.append((len(found), len(found) + len(answer)))
        found += answer + behind
    return _MarkedText(found, answers)
