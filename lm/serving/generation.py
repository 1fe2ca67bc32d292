"""A request for a continuation while it is served: what was asked, and the text so far."""

import dataclasses
import time
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lm.data import Tokenizer
from lm.generation.sample import SamplingParams, request_bytes
from lm.generation.streaming import Continuation


class Token(NamedTuple):
    """A drawn token, its log-probability in nats, and the likeliest tokens with theirs."""

    id: int
    log_prob: float
    top: list[tuple[int, float]]


class Failure(Exception):
    """Why a request has no answer: a status of HTTP, a code, and one line."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def computing_failed(error: Exception) -> Failure:
    """Of a request whose programs failed, such as where memory ran out."""
    return Failure(500, "engine_failed", f"computing failed: {str(error)[:200]}")


class Piece(NamedTuple):
    """What a continuation has grown by.

    Attributes:
      text: the new characters, none of which a later token changes.
      tokens: the new tokens, where log-probabilities were asked for.
      finish_reason: "stop" at the end of the text or a stop string, "length" where all tokens are
        drawn, None where there is more to come.
      failure: why there is no more; None: nothing went wrong.
    """

    text: str
    tokens: list[Token]
    finish_reason: str | None = None
    failure: Failure | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a model.

    Attributes:
      prompt: token ids.
      sampling, seed, repeat: of the draws; equal prompts differ in `repeat`, as in
        `lm.generation.generate`.
      max_new_tokens: tokens to draw, at most.
      stops: texts before which the continuation ends.
      num_log_probs: how many likeliest tokens to report of each draw; None: no log-probabilities.
      source: of an encoder-decoder, what the encoder reads.
      adapter: the place of the adapter.
      streams: whether pieces are wanted as they come.
    """

    prompt: np.ndarray
    sampling: SamplingParams
    seed: int
    repeat: int
    max_new_tokens: int
    stops: Sequence[str] = ()
    num_log_probs: int | None = None
    source: np.ndarray | None = None
    adapter: int = 0
    streams: bool = False

    @property
    def num_read(self) -> int:
        """Tokens that the model reads: of an encoder-decoder, those of its encoder."""
        return len(self.prompt if self.source is None else self.source)

    @property
    def draws(self) -> tuple[int, int, int]:
        """Seed, CRC-32 and repeat, of which `lm.generation.sample.request_key` makes a key."""
        arrays = [self.prompt] if self.source is None else [self.prompt, self.source]
        return self.seed, zlib.crc32(request_bytes(arrays)), self.repeat


class Generation:
    """A request in the engine.

    Attributes:
      request: what was asked.
      deadline: when it fails, by `time.monotonic()`.
      cancelled: nobody waits for it any more.
      admitted, first_token, finished: when, by `time.monotonic()`; None: not yet.
      drawn: how many tokens were drawn.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        receive: Callable[[Piece], None],
        timeout: float,
    ):
        """`receive` is called with every piece, by the thread that `Engine.post` decides on."""
        self.request, self.receive = request, receive
        self.created = time.monotonic()
        self.deadline = self.created + timeout
        self.cancelled = False
        self.admitted: float | None = None
        self.first_token: float | None = None
        self.finished: float | None = None
        self.drawn = 0
        self._text = Continuation(tokenizer, request.prompt, request.stops)
        self._sent, self._tokens = 0, list[Token]()

    @property
    def done(self) -> bool:
        """Whether no more pieces follow."""
        return self.finished is not None

    def add(self, token: Token) -> Piece | None:
        """The piece that a drawn token makes, if any is to be sent."""
        now = time.monotonic()
        self.first_token = self.first_token or now
        if token.id < 0:
            return self.fail(
                Failure(
                    500,
                    "model_diverged",
                    "the model's next-token probabilities are NaN: its training diverged before "
                    "this checkpoint; serve an earlier one with --step",
                )
            )
        self.drawn += 1
        self._text.add(token.id)
        if self.request.num_log_probs is not None:
            self._tokens.append(token)
        reason = None
        if self._text.ended or self.drawn == self.request.max_new_tokens:
            reason = "stop" if self._text.ended else "length"
            self.finished = now
        elif not self.request.streams:
            return None
        # The end may be the start of a stop string, or of a character.
        text = self._text.certain if reason is None else self._text.text
        piece = Piece(text[self._sent :], self._tokens, reason)
        if reason is None and not piece.text and not piece.tokens:
            return None
        self._sent, self._tokens = max(self._sent, len(text)), []
        return piece

    def fail(self, failure: Failure) -> Piece:
        """The last piece of a request that has no answer."""
        self.finished = time.monotonic()
        return Piece("", [], failure=failure)
