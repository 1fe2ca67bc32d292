"""Waits for the engine on behalf of a client, and gives up when the client has left."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from fastapi import Request as HttpRequest

from lm.serving.generation import Failure, Generation, Piece, Request
from lm.serving.http.metrics import Metrics
from lm.serving.row_queue import Arrays
from lm.serving.service import Service


class ClientLeft(Exception):
    """Nobody is there to be answered."""


class Answer:
    """The continuations of one HTTP request, as they come.

    Attributes:
      generations: one for each choice.
    """

    def __init__(self, service: Service, model: str, requests: Sequence[Request], timeout: float):
        """Queues the requests, by the adapter of a name.

        Raises:
          Failure: there is no such model, or the queue is full.
        """
        self._engine = service.engine
        self._pieces: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
        with self._engine.lock:
            place = service.adapters.place(model)
            self.generations = [
                self._generation(service, dataclasses.replace(each, adapter=place), index, timeout)
                for index, each in enumerate(requests)
            ]
            self._engine.submit(self.generations)

    async def pieces(
        self, client: HttpRequest, metrics: Metrics
    ) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all choices, with the number of each, until all are complete; the engine
        drops them when this ends early.

        Raises:
          Failure: one of them has no answer.
          ClientLeft: the client has.
        """
        left = len(self.generations)
        try:
            with _watched(client, lambda: self._pieces.put_nowait(None)):
                while left:
                    found = await self._pieces.get()
                    if found is None:
                        raise ClientLeft
                    index, piece = found
                    if piece.failure is not None:
                        raise piece.failure
                    if piece.finish_reason is not None:
                        metrics.observe(self.generations[index])
                        left -= 1
                    yield index, piece
        finally:
            if left:
                self._engine.cancel(self.generations)

    def _generation(
        self, service: Service, request: Request, index: int, timeout: float
    ) -> Generation:
        def receive(piece: Piece) -> None:
            self._pieces.put_nowait((index, piece))

        return Generation(request, service.run.tokenizer, receive, timeout)


async def outputs(
    futures: "Sequence[concurrent.futures.Future[Arrays]]", client: HttpRequest, timeout: float
) -> list[Arrays]:
    """The outputs of rows.

    Raises:
      Failure: they took too long.
      ClientLeft: the client has.
    """
    gathered = asyncio.gather(*map(asyncio.wrap_future, futures))
    try:
        with _watched(client, gathered.cancel):
            async with asyncio.timeout(timeout):
                return list(await gathered)
    except TimeoutError:
        raise Failure(408, "timeout", f"no answer within {timeout:g} s; send less") from None
    except asyncio.CancelledError:
        if gathered.cancelled() and not _cancelling():
            raise ClientLeft from None
        raise


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextlib.contextmanager
def _watched(client: HttpRequest, left: Callable[[], object]) -> Iterator[None]:
    """Calls `left` when the client leaves meanwhile."""

    async def watch() -> None:
        while (await client.receive())["type"] != "http.disconnect":
            pass
        left()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
