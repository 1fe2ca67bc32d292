"""Connections of clients that are slow, or that leave what they are sent unread, are closed."""

import contextlib
import socket
import threading
import time

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from lm.serving.http.protocol import PunctualProtocol

SECONDS = 0.25


class Hasty(PunctualProtocol):
    """For tests."""

    seconds = SECONDS


async def answers(scope, receive, send):
    """Answers at once, whatever the body is: with as many MB as the path says."""
    megabytes = int(scope["path"][1:])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(megabytes):
        await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})


@pytest.fixture(scope="module")
def address():
    """Of a server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        options = {"http": Hasty, "lifespan": "off", "log_level": "critical", "ws": "none"}
        server = uvicorn.Server(uvicorn.Config(answers, timeout_keep_alive=60, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join()


def request(path, *headers):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def seconds_until_closed(client):
    """Seconds until the server has closed a connection on which bytes go on coming."""
    client.settimeout(0.05)
    begin = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < begin + 5:
            client.send(b"x")
            with contextlib.suppress(TimeoutError):
                if not client.recv(1 << 20):
                    break
    return time.monotonic() - begin


def test_headers_that_come_by_the_byte_end_the_connection(address):
    with socket.create_connection(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nX: ")
        assert SECONDS / 2 < seconds_until_closed(client) < 3


def test_a_body_that_goes_on_after_the_answer_ends_the_connection(address):
    with socket.create_connection(address) as client:
        client.sendall(request("/0", "Content-Length: 1000000"))
        assert client.recv(1 << 10).startswith(b"HTTP/1.1 200")
        assert seconds_until_closed(client) < 3


def test_an_answer_that_is_not_read_ends_the_connection(address):
    with socket.create_connection(address) as client:
        client.sendall(request("/64", "Content-Length: 0"))
        time.sleep(3 * SECONDS)
        client.settimeout(5)
        size = 0
        with contextlib.suppress(ConnectionError):
            while found := client.recv(1 << 20):
                size += len(found)
        assert size < 64 * 2**20


def test_an_answer_that_is_read_slowly_comes_whole(address):
    with socket.create_connection(address) as client:
        client.sendall(request("/16", "Content-Length: 0", "Connection: close"))
        found = b""
        while part := client.recv(1 << 20):
            found += part
            time.sleep(SECONDS / 8)
        assert found.endswith(b"3\r\nend\r\n0\r\n\r\n")


def test_connections_are_kept_for_the_next_request(address):
    with socket.create_connection(address) as client:
        for _ in range(2):
            client.sendall(request("/0", "Content-Length: 1") + b"x")
            found = b""
            while not found.endswith(b"0\r\n\r\n"):
                found += client.recv(1 << 10)
            time.sleep(2 * SECONDS)
