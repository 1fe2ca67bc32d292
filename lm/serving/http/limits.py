"""What is refused before a request is read as JSON: a wrong token, a foreign page, a body that is
too long or too slow, and other types of bodies.
"""

import asyncio
import dataclasses
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm.serving.generation import Failure
from lm.serving.http.errors import response

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/", "/healthz", "/readyz", "/openapi.json")  # paths that need no token


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    Attributes:
      token: that clients must send; None: none, and only pages of this machine may ask.
      max_body_bytes: of a body.
      body_timeout: seconds until it has come.
      request_timeout: seconds until it is answered.
    """

    token: str | None = None
    max_body_bytes: int = 1 << 20
    body_timeout: float = 10.0
    request_timeout: float = 120.0


class Guard:
    """ASGI middleware that enforces `Limits`; `posts` are the paths that read a body."""

    def __init__(self, app: ASGIApp, limits: Limits, posts: frozenset[str]):
        """Wraps an application."""
        self.app, self.limits, self._posts = app, limits, posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what is refused, and passes on the rest with its whole body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_origin(headers)
            if scope["path"] not in OPEN:
                self._check_token(headers)
            body = b""
            if scope["method"] == "POST" and scope["path"] in self._posts:
                body = await self._body(headers, receive)
        except Failure as failure:
            await response(failure)(scope, receive, send)
            return
        except ConnectionResetError:  # nobody is there to answer
            return
        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return rest.pop() if rest else await receive()

        await self.app(scope, replay, send)

    def _check_origin(self, headers: Headers) -> None:
        """Refuses pages of other sites that a browser shows, which need no token on loopback."""
        host = _hostname(f"//{headers.get('host', '')}")
        if self.limits.token is None and host not in LOOPBACK:
            raise Failure(
                403,
                "wrong_host",
                "a server without a token answers to localhost alone; start it with --token_file",
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            raise Failure(403, "wrong_origin", "pages of other sites may not ask this server")

    def _check_token(self, headers: Headers) -> None:
        if self.limits.token is None:
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(token.strip().encode(), self.limits.token.encode())
        if kind.lower() != "bearer" or not same:
            raise Failure(
                401, "invalid_api_key", "send the server's token as Authorization: Bearer TOKEN"
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        limit = self.limits.max_body_bytes
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Failure(415, "not_json", "send the body as Content-Type: application/json")
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 15 or int(announced) > limit:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Failure(
                408, "slow_body", f"the body did not come within {self.limits.body_timeout:g} s"
            ) from None

    def _too_large(self) -> Failure:
        limit = self.limits.max_body_bytes
        return Failure(
            413, "body_too_large", f"the body has more than {limit} bytes; send less at a time"
        )


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
