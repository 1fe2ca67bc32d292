"""Routes that read whole texts: embeddings, likelihoods, predictions, and what the page shows."""

import base64
import math
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from lm.generation.prompts import prompt_ids
from lm.serving.generation import Failure
from lm.serving.http.answers import outputs
from lm.serving.http.completions import token_text
from lm.serving.http.errors import Ascii
from lm.serving.http.schemas import (
    AttentionBody,
    EmbeddingBody,
    NextTokensBody,
    PredictionBody,
    ScoreBody,
)
from lm.serving.http.state import State, state_of
from lm.serving.row_programs import SOFTMAXES, under_softmaxes
from lm.serving.row_queue import Arrays, RowProgram

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, request: Request) -> Response:
    """Vectors of texts, pooled as the server was started."""
    state = state_of(request, "embeddings")
    embedder = state.service.embedder
    rows = await run_in_threadpool(embedder.rows, body.texts)
    found = await _computed(state, embedder, rows, body.model, request)
    tokens = sum(int(row["real"].sum()) for row in rows)
    data = []
    for index, each in enumerate(found):
        vector = embedder.vector(each).astype(np.float32)
        coded: str | list[float] = vector.tolist()
        if body.encoding_format == "base64":
            coded = base64.b64encode(vector.tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": coded})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Ascii({"object": "list", "data": data, "model": body.model, "usage": usage})


@router.post("/v1/score")
async def score(body: ScoreBody, request: Request) -> Response:
    """The log-likelihood in nats of each answer behind its text."""
    state = state_of(request, "score")
    scorer = state.service.scorer
    assert scorer is not None
    pairs = [(each.text, each.answer) for each in body.answers]
    rows, tokens = await run_in_threadpool(scorer.rows, pairs)
    flat = [row for each in rows for row in each]
    found = iter(await _computed(state, scorer, flat, body.model, request))
    data = []
    for each, count in zip(rows, tokens, strict=True):
        parts = [next(found) for _ in each]
        total = sum(float(part["total"]) for part in parts)
        data.append(
            {
                # JSON has no -inf, the log-likelihood of what a sparse head excludes.
                "log_likelihood": total if math.isfinite(total) else None,
                "is_likeliest": all(bool(part["likeliest"]) for part in parts),
                "tokens": count,
            }
        )
    return Ascii({"object": "list", "data": data, "model": body.model})


async def _predictions(body: PredictionBody, request: Request, ability: str) -> Response:
    state = state_of(request, ability)
    predictor = state.service.predictor
    assert predictor is not None
    examples, rows = await run_in_threadpool(predictor.examples, body.inputs)
    found = await _computed(state, predictor, rows, body.model, request)
    data = [
        predictor.prediction(example, found[example["rows"][0] : example["rows"][1]])
        for example in examples
    ]
    return Ascii({"object": "list", "data": data, "model": body.model})


@router.post("/v1/classify")
async def classify(body: PredictionBody, request: Request) -> Response:
    """A class, a number or a choice for each input, of a run of such a task."""
    return await _predictions(body, request, "classify")


@router.post("/v1/tag")
async def tag(body: PredictionBody, request: Request) -> Response:
    """A tag for each word of each input, of a run of task token_classification."""
    return await _predictions(body, request, "tag")


@router.post("/v1/answer")
async def answer(body: PredictionBody, request: Request) -> Response:
    """The answer in a context to each input, a question and the context, of a run of task
    extractive_qa.
    """
    return await _predictions(body, request, "answer")


@router.post("/v1/next_tokens")
async def next_tokens(body: NextTokensBody, request: Request) -> Response:
    """The likeliest next tokens under several softmaxes of the same scores."""
    state = state_of(request, "next_tokens")
    part, run = state.service.next_tokens, state.service.run
    assert part is not None
    ids = (await run_in_threadpool(prompt_ids, run.tokenizer, [body.text], run.opens))[0]
    (found,) = await _computed(state, part, [part.row(ids)], body.model, request)
    softmaxes, weights = {}, under_softmaxes(found["scores"])
    for name in SOFTMAXES:  # in their order; that of a jitted function's results is another
        odds = np.asarray(weights[name])
        tokens = [
            {"token": token_text(run.tokenizer, int(i)), "id": int(i), "p": float(odds[i])}
            for i in np.argsort(-odds, kind="stable")[: body.top]
        ]
        softmaxes[name] = {"tokens": tokens, "support": int(np.count_nonzero(odds))}
    return Ascii({"vocab_size": run.tokenizer.vocab_size, "softmaxes": softmaxes})


@router.post("/v1/attention")
async def attention(body: AttentionBody, request: Request) -> Response:
    """The weights of one layer and head between the tokens of a text: a row for each query."""
    state = state_of(request, "attention")
    part, run = state.service.attention, state.service.run
    assert part is not None
    ids = await run_in_threadpool(part.ids, body.text)
    (found,) = await _computed(state, part, [part.row(ids)], body.model, request)
    found = {name: found[name] for name in found if name.startswith("attention")}
    layers, heads = next(iter(found.values())).shape[:2]
    if body.layer >= layers or body.head >= heads:
        raise Failure(
            400,
            "no_such_head",
            f"layer {body.layer}, head {body.head}: the model has {layers} layers and {heads} "
            "heads, counted from 0",
        )
    size = len(ids)
    maps = {
        name: np.round(weights[body.layer, body.head, :size, :size].astype(float), 5).tolist()
        for name, weights in found.items()
    }
    tokens = [token_text(run.tokenizer, int(i)) for i in ids]
    return Ascii({"tokens": tokens, "layers": layers, "heads": heads, "maps": maps})


async def _computed(
    state: State, part: RowProgram, rows: Sequence[Arrays], model: str, request: Request
) -> list[Arrays]:
    """The outputs of rows of one of the service's parts, in order."""
    futures = state.service.submit_rows(part, rows, model)
    return await outputs(futures, request, state.limits.request_timeout)
