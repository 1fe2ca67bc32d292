"""Turns SIGINT and SIGTERM into a request to stop after a step, the same one in all processes."""

import signal
import sys

import jax

from lm.devices.hosts import largest, process_count


class Signals:
    """Turns the first SIGINT or SIGTERM into a request; a second one stops at once.

    Attributes:
      received: the signal's number; 0: none. Of several processes it is what any of them had when
        they last asked each other, the same in all.
    """

    def __init__(self):
        self.received = self._own = 0
        self._asked: jax.Array | None = None

    def __enter__(self) -> "Signals":
        caught = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._receive) for number in caught}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def exchange(self, wait: bool = False) -> None:
        """Asks the other processes. What they answer is known at the next call, when the devices
        have long computed it, or with `wait` at once. All call it after the same steps.
        """
        if process_count() == 1:
            return
        asked, self._asked = self._asked, largest(self._own)
        if (answer := self._asked if wait else asked) is not None:
            self.received = max(self.received, int(answer))

    def _receive(self, number: int, _) -> None:
        self._own = number
        if process_count() == 1:
            self.received = number
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
