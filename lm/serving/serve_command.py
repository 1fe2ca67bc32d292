"""Runs `run.py serve`: opens a checkpoint, listens, compiles, and answers until it has to end."""

import dataclasses
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from lm.checkpoints.restored import Restored
from lm.errors import UserError
from lm.serving.service import Service, ServiceOptions, model_name

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NEEDS = 'serving needs the extra serve: pip install -e ".[serve]"'


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens, and whom it answers.

    Attributes:
      host, port: of the socket; port 0: any that is free.
      token_file: a file with the token that clients send; None: none is asked for.

    Raises:
      UserError: others than this machine could ask without a token, or the file holds none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None

    def __post_init__(self):
        """Checks who could ask."""
        if self.host not in LOOPBACK and self.token_file is None:
            raise UserError(
                f"--host={self.host} lets other machines ask; add --token_file=FILE with a token "
                f"that they have to send, or listen on {LOOPBACK[0]}"
            )

    def read_token(self) -> str | None:
        """The token; None where none is asked for."""
        if self.token_file is None:
            return None
        try:
            token = Path(self.token_file).expanduser().read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--token_file={self.token_file} cannot be read: {error}") from None
        if len(token) < 16 or len(token.split()) != 1:
            raise UserError(
                f"--token_file={self.token_file} must hold one word of at least 16 characters, "
                "such as `openssl rand -hex 32` prints"
            )
        return token

    def listen(self) -> socket.socket:
        """A socket that listens; UserError where the address cannot be had."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=1024)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--host={self.host} --port={self.port} cannot be listened on ({error}); use "
                "another, or --port=0 for any that is free"
            ) from None


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Bounds of what clients may send and wait for.

    Attributes:
      max_body_bytes: of a request's body.
      request_timeout: seconds until a request is answered.
    """

    max_body_bytes: int = 1 << 20
    request_timeout: float = 120.0


def serve(
    open_run: Callable[[], Restored],
    open_adapter: Callable[[epath.Path], Restored],
    flags: Mapping[str, Any],
) -> None:
    """Serves a model until a signal, SIGTERM or SIGINT, ends it: what was asked before is answered.

    Args:
      open_run: restores the model.
      open_adapter: restores the run of an adapter from its workdir.
      flags: by name, the fields of `Address`, `Bounds` and `ServiceOptions`, and "name", of the
        model; None: that of its config's init_from.

    Raises:
      UserError: a flag does not suit, or a package is missing.
    """
    address, bounds = _of(Address, flags), _of(Bounds, flags)
    options = _of(ServiceOptions, flags)
    try:
        import uvicorn

        from lm.serving.http.app import make_app
        from lm.serving.http.limits import Limits
        from lm.serving.http.protocol import PunctualProtocol
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("lm"):
            raise
        raise UserError(f"{_NEEDS} ({missing.name} is missing)") from None
    token, listening = address.read_token(), address.listen()
    run = open_run()
    name = flags["name"] or model_name(run.config.init_from)
    service = Service(run, name, options, open_adapter)
    limits = Limits(token, bounds.max_body_bytes, request_timeout=bounds.request_timeout)
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    def ready() -> None:
        paths = ", ".join(f"/v1/{ability}" for ability in service.abilities)
        print(f"ready: {service.compiled} programs; {paths}", flush=True)

    config = uvicorn.Config(
        make_app(service, limits, failed=failed, ready=ready),
        http=PunctualProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(bounds.request_timeout) + 1,
        limit_concurrency=2 * options.max_queue + 512,
    )
    server = uvicorn.Server(config)
    port = listening.getsockname()[1]
    host = f"[{address.host}]" if ":" in address.host else address.host
    print(f"listening on http://{host}:{port}, process {os.getpid()}", flush=True)
    # uvicorn raises the signal again when it has ended, which is no failure.
    ends = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(each, lambda *_: None) for each in ends]
    try:
        server.run(sockets=[listening])
    finally:
        for each, handler in zip(ends, before, strict=True):
            signal.signal(each, handler)
    if failures:
        raise failures[0]


def _of(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass with those of the values that it has fields for."""
    return kind(**{name: values[name] for name in kind.__dataclass_fields__})  # pyright: ignore
