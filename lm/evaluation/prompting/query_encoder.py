"""Encodes a question with an answer as rows, whose log-likelihoods sum to the answer's: one for a
decoder; one for an encoder-decoder, whose encoder reads the question; for an encoder one with the
whole answer masked, or one for each of its tokens.
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
from lm.evaluation.scored_row import ScoredRow
from lm.finetuning import max_text_len


class EncodedQuery(NamedTuple):
    """A query as rows of tokens.

    Attributes:
      rows: their log-likelihoods sum to the answer's.
      tokens: the number of tokens of the answer.
      truncated: whether the text lost its first tokens, as the model has too few positions.
    """

    rows: list[ScoredRow]
    tokens: int
    truncated: bool


# The divisor of an answer's log-likelihood.
LENGTH_NORMALIZERS: dict[str, Callable[[Query, EncodedQuery], int]] = {
    "none": lambda query, encoded: 1,
    "tokens": lambda query, encoded: encoded.tokens,
    "bytes": lambda query, encoded: len(query.answer.encode()),
}
MLM_SCORING = ("answer", "token")


@dataclasses.dataclass(frozen=True)
class QueryEncoder:
    """Encodes queries as rows. A token of the question's end and the answer's beginning, such as a
    space and a word, belongs to the answer.

    Attributes:
      tokenizer: the tokenizer of the model.
      length: the number of positions of a text.
      objective: the training objective: a name of `QUERY_ENCODERS`.
      frame: the tokens around the texts of an encoder-decoder.
      opens: the tokens that open the texts of a decoder.
      marked: whether texts are written by a chat template; see `lm.data.inline_special_tokens`.
      mlm_scoring: of an encoder, "answer" masks all tokens of the answer at once; "token" one after
        the other: the pseudo-log-likelihood (Salazar et al. 2020, 1910.14659).
    """

    tokenizer: Tokenizer
    length: int
    objective: str
    frame: EncoderDecoderTokens
    opens: tuple[int, ...] = ()
    mlm_scoring: str = "answer"
    marked: bool = False

    def __call__(self, queries: Sequence[Query]) -> list[EncodedQuery]:
        """Encodes each query.

        Raises:
          UserError: an answer has no token, or more than there are positions.
        """
        return list(QUERY_ENCODERS[self.objective](self, queries))

    def _causal(self, queries: Sequence[Query]) -> Iterator[EncodedQuery]:
        """Log p(answer | before); `start` predicts the first token where nothing is before it."""
        for query, ids, positions in self._encoded([query._replace(after="") for query in queries]):
            opens = self.opens
            truncated = self._excess(query, len(opens) + len(ids) - 1 - self.length, positions)
            if not opens and truncated == positions[0]:
                opens = (self.tokenizer.start,)
                truncated = self._excess(query, len(ids) - self.length, positions)
            # A token of the answer is predicted at the position before it.
            inputs = np.concatenate([opens, ids[truncated:-1]]).astype(np.int32)
            seen = positions - truncated + len(opens) - 1
            prefix = int(seen[0]) + 1 if self.objective == "prefix" else 0
            row = ScoredRow(inputs, seen, ids[positions], prefix=prefix)
            yield EncodedQuery([row], len(positions), truncated > 0)

    def _masked(self, queries: Sequence[Query]) -> Iterator[EncodedQuery]:
        """Log p(answer | before, after), the sum over its tokens."""
        for query, ids, positions in self._encoded(queries):
            before, after = self.tokenizer.specials.before, self.tokenizer.specials.after
            excess = len(before) + len(ids) + len(after) - self.length
            truncated = self._excess(query, excess, positions)
            tokens = np.concatenate([before, ids[truncated:], after]).astype(np.int32)
            positions = positions + len(before) - truncated
            rows: list[ScoredRow] = []
            mask: Any = self.tokenizer.mask
            for group in np.split(positions, 1 if self.mlm_scoring == "answer" else len(positions)):
                inputs = tokens.copy()
                inputs[group] = mask
                rows.append(ScoredRow(inputs, group, tokens[group]))
            yield EncodedQuery(rows, len(positions), truncated > 0)

    def _answered(self, queries: Sequence[Query]) -> Iterator[EncodedQuery]:
        """Log p(answer | before) of a decoder whose encoder reads the question, or, with the span
        objective, the text around the answer with a sentinel in its place.
        """
        if self.objective == "span":
            sentinel = self.tokenizer.sentinels[:1]
            for query, ids, positions in self._encoded(queries):
                first, end = int(positions[0]), int(positions[-1]) + 1
                seen = ids[:first], np.append(sentinel, ids[end:]).astype(np.int32)
                opens = (*self.frame.opens, *sentinel)
                yield self._decoder_row(query, *seen, ids[first:end], opens)
            return
        before = self.tokenizer.encode_batch([query.before for query in queries])
        answers = self._encoded([Query("", query.answer) for query in queries])
        for (query, ids, _), each in zip(answers, before, strict=True):
            yield self._decoder_row(query, each.ids, ids[:0], ids, self.frame.opens)

    def _decoder_row(
        self,
        query: Query,
        before: np.ndarray,
        after: np.ndarray,
        answer: np.ndarray,
        opens: tuple[int, ...],
    ) -> EncodedQuery:
        """The row of a decoder that predicts the answer from both sides of it in the encoder."""
        positions = np.arange(len(answer)) + len(opens) - 1
        self._excess(query, positions[-1] + 1 - self.length, np.arange(len(answer)))
        truncated = max(len(self.frame.encoder_input(before)) + len(after) - self.length, 0)
        after = after[: len(after) - max(truncated - len(before), 0)]
        encoder_inputs = self.frame.encoder_input(np.concatenate([before[truncated:], after]))
        inputs = np.concatenate([opens, answer[:-1]])
        row = ScoredRow(inputs, positions, answer, encoder_inputs=encoder_inputs)
        return EncodedQuery([row], len(answer), truncated > 0)

    def _encoded(self, queries: Sequence[Query]) -> Iterator[tuple[Query, np.ndarray, np.ndarray]]:
        """Each query, the tokens of its text, and the positions of the answer."""
        texts = [query.text for query in queries]
        if self.marked:
            encoded = encode_marked(self.tokenizer, texts)
        else:
            encoded = self.tokenizer.encode_batch(texts)
        for query, each in zip(queries, encoded, strict=True):
            begin = len(query.before.encode())
            positions = each.within(begin, begin + len(query.answer.encode()))
            if not len(positions):
                raise UserError(
                    f"the answer {query.answer!r} has no token; answers are texts of at least a "
                    "character"
                )
            yield query, each.ids, positions

    def _excess(self, query: Query, excess: int, positions: np.ndarray) -> int:
        """How many of the first tokens are dropped, at least 0, none of them the answer's."""
        if excess > positions[0]:
            raise UserError(
                f"the answer {query.answer[:40]!r} has {len(positions)} tokens, more than fit into "
                f"the {self.length} positions that a text has here (config.model.max_seq_len)"
            )
        return max(excess, 0)


QUERY_ENCODERS: dict[str, Callable[[QueryEncoder, Sequence[Query]], Iterator[EncodedQuery]]] = {
    "causal": QueryEncoder._causal,
    "prefix": QueryEncoder._causal,
    "masked": QueryEncoder._masked,
    "seq2seq": QueryEncoder._answered,
    "span": QueryEncoder._answered,
}

# The objective by which a model of a task is queried.
_DEFAULT = {"decoder": "causal", "encoder": "masked", "encoder_decoder": "seq2seq"}


def query_encoder(
    config: Config, tokenizer: Tokenizer, frame: EncoderDecoderTokens, opens: tuple[int, ...]
) -> QueryEncoder:
    """The query encoder for the model of a config; `frame` and `opens` are those of its run."""
    architecture = config.model.architecture
    suits = OBJECTIVES[config.objective].architecture == architecture
    objective = config.objective if suits else _DEFAULT[architecture]
    return QueryEncoder(
        tokenizer, max_text_len(config), objective, frame, opens, config.prompt.mlm_scoring
    )
