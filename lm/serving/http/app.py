"""The application: routes, guards, the page, and what begins and ends with the server."""

import asyncio
import contextlib
import pathlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

import lm
from lm.serving.http import completions, rows
from lm.serving.http.answers import ClientLeft
from lm.serving.http.errors import Ascii, add_handlers
from lm.serving.http.limits import OPEN, Guard, Limits
from lm.serving.http.metrics import Measured, Metrics
from lm.serving.http.schemas import AdapterBody, ErrorBody
from lm.serving.http.state import State, state_of
from lm.serving.service import Service

PAGE = pathlib.Path(__file__).with_name("page.html")


def make_app(
    service: Service,
    limits: Limits,
    failed: Callable[[BaseException], None] = lambda error: None,
    ready: Callable[[], None] = lambda: None,
) -> Any:
    """The ASGI application that serves a model.

    Args:
      service: not compiled yet; the application compiles it when it begins.
      limits: of requests.
      failed: told what kept the service from being compiled.
      ready: called when it is.
    """
    state = State(service, limits, Metrics(service), int(time.time()))
    ending = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.post = asyncio.get_running_loop().call_soon_threadsafe
        starting = asyncio.create_task(_start(state, ending, failed, ready))
        yield
        ending.set()
        await starting
        if state.ready:
            await run_in_threadpool(service.engine.close)

    app = FastAPI(
        title="Softmax laboratory",
        version=lm.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.server = state
    app.include_router(completions.router)
    app.include_router(rows.router)
    _add_own(app)
    add_handlers(app)
    app.add_exception_handler(ClientLeft, _left)
    app.openapi = lambda: _document(app, service, limits)
    paths = app.openapi()["paths"]
    posts = frozenset(path for path, operations in paths.items() if "post" in operations)
    return Measured(Guard(app, limits, posts), state.metrics, frozenset(paths))


async def _start(
    state: State,
    ending: threading.Event,
    failed: Callable[[BaseException], None],
    ready: Callable[[], None],
) -> None:
    """Compiles everything, and begins to answer, unless it is `ending` before."""

    def compile_all() -> None:
        for _ in state.service.compile():
            if ending.is_set():
                return

    try:
        await run_in_threadpool(compile_all)
    except Exception as error:
        failed(error)
        return
    if ending.is_set():
        return
    state.service.engine.start()
    state.ready = True
    ready()


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


def _add_own(app: FastAPI) -> None:
    """The routes that ask no model."""

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """A page to try the model."""
        return HTMLResponse(PAGE.read_text(), headers={"Content-Security-Policy": _POLICY})

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> PlainTextResponse:
        """Whether the process answers."""
        return PlainTextResponse("ok")

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz(request: Request) -> PlainTextResponse:
        """Whether everything is compiled and requests are answered."""
        state_of(request)
        return PlainTextResponse("ready")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> PlainTextResponse:
        """Counts and times, for Prometheus."""
        text = request.app.state.server.metrics.text()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        """The model and its adapters, and what may be asked of them."""
        state = state_of(request)
        service = state.service
        shown = {
            "object": "model",
            "created": state.started,
            "owned_by": "softmax-laboratory",
            "abilities": service.abilities,
            "max_model_len": service.length,
            "num_layers": service.run.config.model.num_layers,
            "num_heads": service.run.config.model.num_heads,
        }
        data = [{"id": name, **shown} for name in service.adapters.names]
        return Ascii({"object": "list", "data": data})

    @app.post("/v1/load_lora_adapter")
    async def load(body: AdapterBody, request: Request) -> Response:
        """Serves a further adapter of --adapters, or a newer checkpoint of one that is served."""
        await run_in_threadpool(state_of(request).service.adapters.load, body.lora_name)
        return Ascii({"loaded": body.lora_name})

    @app.post("/v1/unload_lora_adapter")
    async def unload(body: AdapterBody, request: Request) -> Response:
        """Serves an adapter no more."""
        state_of(request).service.adapters.unload(body.lora_name)
        return Ascii({"unloaded": body.lora_name})


# The page loads nothing, and asks this server alone.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
_POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _document(app: FastAPI, service: Service, limits: Limits) -> dict[str, Any]:
    """The OpenAPI document; bodies that are not as they should be get the status 400."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status in ("4XX", "5XX"):
                operation["responses"][status]["content"] = error
            if path in OPEN:
                operation["security"] = []
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"]["enum"] = list(service.adapters.names)
    model = service.run.config.model
    most = {
        ("CompletionBody", "max_tokens"): service.length - 1,
        ("ChatBody", "max_tokens"): service.length - 1,
        ("ChatBody", "max_completion_tokens"): service.length - 1,
        ("AttentionBody", "layer"): model.num_layers - 1,
        ("AttentionBody", "head"): model.num_heads - 1,
        ("CompletionBody", "prompt"): service.run.tokenizer.vocab_size - 1,
    }
    for (body, name), maximum in most.items():
        about = schemas[body]["properties"][name]
        kinds = (about, *about.get("anyOf", ()))
        for each in (*kinds, *(kind["items"] for kind in kinds if "items" in kind)):
            if each.get("type") == "integer":
                each.pop("exclusiveMaximum", None)
                each["maximum"] = maximum
    if limits.token is not None:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found
