"""HTTP/1.1 by uvicorn, where a client has a time to send a request, and to read the answer."""

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class PunctualProtocol(H11Protocol):
    """Closes connections on which for `seconds` no headers of a request arrive, however slowly, a
    body goes on that was answered before it had come, or nothing of an answer is read.
    """

    seconds: ClassVar[float] = 10.0
    _request: asyncio.TimerHandle | None = None
    _answer: asyncio.TimerHandle | None = None

    def connection_made(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, transport: asyncio.Transport
    ) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        self._expect_request()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._expect_request()

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        _cancel(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        _cancel(self._request)
        _cancel(self._answer)
        super().connection_lost(exc)

    def _lacks_request(self) -> bool:
        """Whether headers are to come, or the rest of a body that was answered."""
        theirs = self.conn.their_state
        answered = self.conn.our_state is h11.DONE
        return theirs is h11.IDLE or (theirs is h11.SEND_BODY and answered)

    def _expect_request(self) -> None:
        if not self._lacks_request():
            _cancel(self._request)
            self._request = None
        elif self._request is None:
            self._request = self.loop.call_later(self.seconds, self._close)

    def _close(self) -> None:
        self._request = None
        if self._lacks_request() and not self.transport.is_closing():
            self.transport.close()

    def _expect_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._answer = self.loop.call_later(self.seconds, self._abort, unread)

    def _abort(self, unread: int) -> None:
        """Ends the connection if as much is unread as before; closing would wait for it."""
        if self.transport.get_write_buffer_size() < unread:
            self._expect_reader()
        else:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
