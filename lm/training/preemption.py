"""Turns SIGINT and SIGTERM into a request to stop after the running step."""

import signal
import sys


class Signals:
    """Turns the first SIGINT or SIGTERM into a request; a second one stops at once."""

    def __init__(self):
        self.received = 0

    def __enter__(self) -> "Signals":
        caught = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._receive) for number in caught}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.received = number
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
