"""How does a model read a question with an answer? As rows, whose log-likelihoods sum to the
answer's: one for a decoder; one for an encoder-decoder, whose encoder reads the question; for an
encoder one with all of the answer hidden, or one for each of its tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config import Config
from lm.data import Tokenizer
from lm.data.inline_special_tokens import encode_marked
from lm.data.objectives import OBJECTIVES
from lm.data.special_tokens import EncoderDecoderTokens
from lm.errors import UserError
from lm.evaluation.prompting.template import Query
from lm.evaluation.scored_row import Row
from lm.finetuning import max_text_len


class Reading(NamedTuple):
    """A query as a model reads it.

    Attributes:
      rows: whose log-likelihoods sum to the answer's.
      tokens: of the answer.
      cut: the text's first tokens were left out, as the model has too few positions.
    """

    rows: list[Row]
    tokens: int
    cut: bool


# What an answer's log-likelihood is divided by.
NORMALISERS: dict[str, Callable[[Query, Reading], int]] = {
    "none": lambda query, reading: 1,
    "tokens": lambda query, reading: reading.tokens,
    "bytes": lambda query, reading: len(query.answer.encode()),
}
HIDDEN = ("answer", "token")


@dataclasses.dataclass(frozen=True)
class Reader:
    """Queries to rows. A token that holds the question's end and the answer's beginning, such as a
    space and a word, is the answer's.

    Attributes:
      tokenizer: of the model.
      length: how many positions a text may take.
      objective: what it learned: a name of `READERS`.
      frame: of an encoder-decoder, what stands around its texts.
      opens: of a decoder, what opens its texts.
      marked: texts are those of a template of conversations; see `lm.data.inline_special_tokens`.
      hidden: of an encoder, "answer" hides all tokens of the answer at once; "token" one after the
        other, and the rest are seen: the pseudo-log-likelihood (Salazar et al. 2020, 1910.14659).
    """

    tokenizer: Tokenizer
    length: int
    objective: str
    frame: EncoderDecoderTokens
    opens: tuple[int, ...] = ()
    hidden: str = "answer"
    marked: bool = False

    def __call__(self, queries: Sequence[Query]) -> list[Reading]:
        """The reading of each query.

        Raises:
          UserError: an answer has no token, or more than there are positions.
        """
        return list(READERS[self.objective](self, queries))

    def _causal(self, queries: Sequence[Query]) -> Iterator[Reading]:
        """Log p(answer | before); what stands behind the answer is not looked at.

        Where nothing opens a text, and nothing stands before the answer, its first token is
        predicted from the tokenizer's `start`.
        """
        for query, ids, places in self._encoded([query._replace(after="") for query in queries]):
            opens = self.opens
            cut = self._cut(query, len(opens) + len(ids) - 1 - self.length, places)
            if not opens and cut == places[0]:
                opens = (self.tokenizer.start,)
                cut = self._cut(query, len(ids) - self.length, places)
            # An answer's token is predicted where the token before it stands.
            inputs = np.concatenate([opens, ids[cut:-1]]).astype(np.int32)
            seen = places - cut + len(opens) - 1
            prefix = int(seen[0]) + 1 if self.objective == "prefix" else 0
            yield Reading([Row(inputs, seen, ids[places], prefix=prefix)], len(places), cut > 0)

    def _masked(self, queries: Sequence[Query]) -> Iterator[Reading]:
        """Log p(answer | before, after), each token by itself."""
        for query, ids, places in self._encoded(queries):
            around = self.tokenizer.specials
            sides = around.before, around.after
            cut = self._cut(query, len(ids) + sum(map(len, sides)) - self.length, places)
            tokens = np.concatenate([sides[0], ids[cut:], sides[1]]).astype(np.int32)
            places = places + len(sides[0]) - cut
            groups = [places] if self.hidden == "answer" else np.split(places, len(places))
            rows: list[Row] = []
            mask: Any = self.tokenizer.mask
            for group in groups:
                inputs = tokens.copy()
                inputs[group] = mask
                rows.append(Row(inputs, group, tokens[group]))
            yield Reading(rows, len(places), cut > 0)

    def _answered(self, queries: Sequence[Query]) -> Iterator[Reading]:
        """Log p(answer | before): the decoder's text, when the encoder has read the question.

        The answer is a text of its own. Where spans were learned, it is a part of the whole text:
        the encoder reads what stands around it, a sentinel in its place, and the decoder writes
        that sentinel and the answer.
        """
        if self.objective == "span":
            sentinel = self.tokenizer.sentinels[:1]
            for query, ids, places in self._encoded(queries):
                first, end = int(places[0]), int(places[-1]) + 1
                seen = ids[:first], np.append(sentinel, ids[end:]).astype(np.int32)
                yield self._written(query, *seen, ids[first:end], (*self.frame.opens, *sentinel))
            return
        before = self.tokenizer.encode_batch([query.before for query in queries])
        answers = self._encoded([Query("", query.answer) for query in queries])
        for (query, ids, _), each in zip(answers, before, strict=True):
            yield self._written(query, each.ids, ids[:0], ids, self.frame.opens)

    def _written(
        self,
        query: Query,
        before: np.ndarray,
        behind: np.ndarray,
        answer: np.ndarray,
        opens: tuple[int, ...],
    ) -> Reading:
        """What the decoder writes behind what opens its text, when the encoder has read the two
        sides of it. Where they are too long, the first loses its first tokens, and then the second
        its last.
        """
        places = np.arange(len(answer)) + len(opens) - 1
        self._cut(query, places[-1] + 1 - self.length, np.arange(len(answer)))
        cut = max(len(self.frame.encoder_input(before)) + len(behind) - self.length, 0)
        behind = behind[: len(behind) - max(cut - len(before), 0)]
        memory = self.frame.encoder_input(np.concatenate([before[cut:], behind]))
        inputs = np.concatenate([opens, answer[:-1]])
        return Reading([Row(inputs, places, answer, memory=memory)], len(answer), cut > 0)

    def _encoded(self, queries: Sequence[Query]) -> Iterator[tuple[Query, np.ndarray, np.ndarray]]:
        """Each query, the tokens of its text, and which of them are the answer's."""
        texts = [query.text for query in queries]
        if self.marked:
            encoded = encode_marked(self.tokenizer, texts)
        else:
            encoded = self.tokenizer.encode_batch(texts)
        for query, each in zip(queries, encoded, strict=True):
            begin = len(query.before.encode())
            places = each.within(begin, begin + len(query.answer.encode()))
            if not len(places):
                raise UserError(
                    f"the answer {query.answer!r} has no token of its own; answers are texts of at "
                    "least a character"
                )
            yield query, each.ids, places

    def _cut(self, query: Query, excess: int, places: np.ndarray) -> int:
        """How many of the first tokens have to go, 0 at least, none of them the answer's."""
        if excess > places[0]:
            raise UserError(
                f"the answer {query.answer[:40]!r} has {len(places)} tokens, more than fit into "
                f"the {self.length} positions that a text has here (config.model.max_seq_len)"
            )
        return max(excess, 0)


READERS: dict[str, Callable[[Reader, Sequence[Query]], Iterator[Reading]]] = {
    "causal": Reader._causal,
    "prefix": Reader._causal,
    "masked": Reader._masked,
    "seq2seq": Reader._answered,
    "span": Reader._answered,
}

# What a model is asked by that was last trained for a task.
_PLAIN = {"decoder": "causal", "encoder": "masked", "encoder_decoder": "seq2seq"}


def reader(
    config: Config, tokenizer: Tokenizer, frame: EncoderDecoderTokens, opens: tuple[int, ...]
) -> Reader:
    """How the model of a config reads; `frame` and `opens` are those of its run."""
    architecture = config.model.architecture
    suits = OBJECTIVES[config.objective].architecture == architecture
    objective = config.objective if suits else _PLAIN[architecture]
    return Reader(
        tokenizer, max_text_len(config), objective, frame, opens, config.prompt.mlm_scoring
    )
