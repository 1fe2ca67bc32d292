"""Routes by which a model writes: /v1/completions and /v1/chat/completions, as OpenAI has them."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from lm.data import Tokenizer
from lm.generation.sample import SamplingParams
from lm.serving import generation
from lm.serving.asking import Wish, answer_messages, continue_prompts
from lm.serving.generation import Failure, Piece, Token
from lm.serving.http.answers import Answer, ClientLeft
from lm.serving.http.errors import Ascii, error_body
from lm.serving.http.schemas import ChatBody, CompletionBody, Sampled
from lm.serving.http.state import State, state_of

router = APIRouter()
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
Choice = Callable[[int, str, list[Token], str | None, bool], dict[str, Any]]


@router.post("/v1/completions", responses=_STREAMS)
async def complete(body: CompletionBody, request: Request) -> Response:
    """Continues one text or several."""
    state = state_of(request, "completions")
    wish = _wish(body, body.max_tokens, body.logprobs)
    requests = await run_in_threadpool(continue_prompts, state.service, body.prompts, wish)
    tokenizer, offsets = state.service.run.tokenizer, [0] * len(requests)

    def choice(index: int, text: str, tokens: list[Token], reason: str | None, first: bool) -> dict:
        logprobs = None
        if body.logprobs is not None:
            logprobs = _completion_logprobs(tokenizer, tokens, offsets[index])
            offsets[index] += sum(map(len, logprobs["tokens"]))
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    kinds = "text_completion", "text_completion"
    return await _respond(request, state, body, requests, "cmpl", kinds, choice, choice)


@router.post("/v1/chat/completions", responses=_STREAMS)
async def chat(body: ChatBody, request: Request) -> Response:
    """Writes the assistant's next answer in a conversation."""
    state = state_of(request, "chat/completions")
    wanted = body.max_completion_tokens or body.max_tokens
    wish = _wish(body, wanted, (body.top_logprobs or 0) if body.logprobs else None)
    messages = [message.plain for message in body.messages]
    requests = await run_in_threadpool(answer_messages, state.service, messages, wish)
    tokenizer = state.service.run.tokenizer

    def logprobs(tokens: list[Token]) -> dict[str, Any] | None:
        return {"content": _chat_logprobs(tokenizer, tokens)} if body.logprobs else None

    def whole(index: int, text: str, tokens: list[Token], reason: str | None, first: bool) -> dict:
        message = {"role": "assistant", "content": text}
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs(tokens),
            "finish_reason": reason,
        }

    def part(index: int, text: str, tokens: list[Token], reason: str | None, first: bool) -> dict:
        delta = ({"role": "assistant"} if first else {}) | {"content": text}
        return {
            "index": index,
            "delta": delta,
            "logprobs": logprobs(tokens),
            "finish_reason": reason,
        }

    kinds = "chat.completion", "chat.completion.chunk"
    return await _respond(request, state, body, requests, "chatcmpl", kinds, whole, part)


def _wish(body: Sampled, max_tokens: int | None, num_log_probs: int | None) -> Wish:
    return Wish(
        sampling=SamplingParams(body.temperature, body.top_k, body.top_p, body.min_p),
        seed=body.seed,
        max_new_tokens=max_tokens,
        stops=body.stops,
        number=body.n,
        num_log_probs=num_log_probs,
        streams=body.stream,
    )


async def _respond(
    client: Request,
    state: State,
    body: Sampled,
    requests: Sequence[generation.Request],
    prefix: str,
    kinds: tuple[str, str],
    whole: Choice,
    part: Choice,
) -> Response:
    """The answer, or a stream of it; `kinds` and `whole`, `part` are those of the two."""
    answer = Answer(state.service, body.model, requests, state.limits.request_timeout)
    pieces = answer.pieces(client, state.metrics)
    head = {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kinds[1] if body.stream else kinds[0],
        "created": int(time.time()),
        "model": body.model,
    }
    read = sum(each.num_read for each in requests[:: body.n])

    def usage() -> dict[str, int]:
        drawn = sum(each.drawn for each in answer.generations)
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}

    if body.stream:
        # What fails before the first piece is answered with a status of its own.
        first = await anext(pieces)
        events = _events(first, pieces, head, part, usage if body.includes_usage else None)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    texts, tokens = [""] * len(requests), [list[Token]() for _ in requests]
    reasons: list[str | None] = [None] * len(requests)
    async for index, piece in pieces:
        texts[index] += piece.text
        tokens[index] += piece.tokens
        reasons[index] = piece.finish_reason
    choices = [whole(i, texts[i], tokens[i], reasons[i], True) for i in range(len(requests))]
    return Ascii(head | {"choices": choices, "usage": usage()})


async def _events(
    first: tuple[int, Piece],
    pieces: AsyncIterator[tuple[int, Piece]],
    head: dict[str, Any],
    part: Choice,
    usage: Callable[[], dict[str, int]] | None,
) -> AsyncIterator[str]:
    """Server-sent events, one for each piece, and [DONE]."""
    begun: set[int] = set()

    def event(index: int, piece: Piece) -> str:
        choice = part(
            index, piece.text, list(piece.tokens), piece.finish_reason, index not in begun
        )
        begun.add(index)
        return _sse(head | {"choices": [choice]})

    try:
        yield event(*first)
        async for index, piece in pieces:
            yield event(index, piece)
    except Failure as failure:
        yield _sse(error_body(failure.message, failure.code, status=failure.status))
        return
    except ClientLeft:
        return
    finally:
        await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue] (a generator's)
    if usage is not None:
        yield _sse(head | {"choices": [], "usage": usage()})
    yield "data: [DONE]\n\n"


def _sse(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, allow_nan=False)}\n\n"


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """How a token is shown: its text, within a text, where it may begin with a space that it lacks
    at the beginning; its name where it is special, or `<end>`; its id where it is part of a
    character.
    """
    text = _plain_text(tokenizer, token)
    if text is not None:
        return text
    for name, marker in tokenizer.markers.items():
        if marker.token == token:
            return name
    return "<end>" if token == tokenizer.end else f"token_id:{token}"


def _plain_text(tokenizer: Tokenizer, token: int) -> str | None:
    """The text of a token within a text; None where it has none of its own."""
    if token == tokenizer.end or any(each.token == token for each in tokenizer.markers.values()):
        return None
    first, both = tokenizer.decode([token]), tokenizer.decode([token, token])
    text = both.removeprefix(first)
    return text if text and "\N{REPLACEMENT CHARACTER}" not in text else None


def _completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[Token], offset: int
) -> dict[str, Any]:
    texts = [token_text(tokenizer, token.id) for token in tokens]
    offsets, at = [], offset
    for text in texts:
        offsets.append(at)
        at += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_finite(token.log_prob) for token in tokens],
        "top_logprobs": [
            {token_text(tokenizer, i): _finite(value) for i, value in token.top} for token in tokens
        ],
        "text_offset": offsets,
    }


def _chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    def entry(token: int, log_prob: float) -> dict[str, Any]:
        text = _plain_text(tokenizer, token)
        return {
            "token": token_text(tokenizer, token),
            "logprob": _finite(log_prob),
            "bytes": None if text is None else list(text.encode()),
        }

    return [
        entry(token.id, token.log_prob) | {"top_logprobs": [entry(*each) for each in token.top]}
        for token in tokens
    ]


def _finite(log_prob: float) -> float:
    """JSON has no -inf, the log-probability of what a sparse head excludes."""
    return max(log_prob, -9999.0)
