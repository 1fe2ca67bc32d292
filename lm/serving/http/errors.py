"""Errors as answers: a status of HTTP, and a body as OpenAI's API has it."""

import json

from absl import logging
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lm.errors import UserError
from lm.serving.generation import Failure


def error_body(message: str, code: str | None, param: str | None = None, status: int = 400) -> dict:
    """The body of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(failure: Failure) -> JSONResponse:
    """The answer to a request that failed."""
    headers = {"Retry-After": "1"} if failure.status in (429, 503) else {}
    if failure.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(failure.message, failure.code, status=failure.status)
    return Ascii(body, failure.status, headers=headers)


class Ascii(JSONResponse):
    """JSON in ASCII: what a client sent may hold halves of characters, which UTF-8 has not."""

    def render(self, content: object) -> bytes:
        """See Starlette."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def add_handlers(app: FastAPI) -> None:
    """Has every error answered so."""
    app.add_exception_handler(Failure, _failed)
    app.add_exception_handler(UserError, _misused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)


def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Failure)
    return response(error)


def _misused(request: Request, error: Exception) -> JSONResponse:
    return Ascii(error_body(str(error), "invalid_request"), 400)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Names the field, and not its value, which may be long."""
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        why = f"the body is not JSON: {first['ctx']['error']}, at character {first['loc'][1]}"
        return Ascii(error_body(why, "invalid_json"), 400)
    # Of a field that has alternatives, the one that comes furthest; no names are those of the
    # alternatives, such as "list[str]".
    same = [first, *(each for each in others if each["loc"][:2] == first["loc"][:2])]
    furthest = max(same, key=lambda each: len(each["loc"]))
    parts = (str(part) for part in furthest["loc"][1:])
    place = ".".join(part for part in parts if part.isidentifier() or part.isdecimal())
    message = f"{place or 'the body'}: {furthest['msg'].removeprefix('Value error, ')}"
    return Ascii(error_body(message[:500], "invalid_request", place[:200] or None), 400)


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = error_body(str(error.detail)[:500], None, status=error.status_code)
    return Ascii(body, error.status_code, headers=error.headers)


def _broken(request: Request, error: Exception) -> JSONResponse:
    logging.error("A request failed: %s", error, exc_info=error)
    return Ascii(error_body("the server failed; its log says why", "server_error", status=500), 500)
