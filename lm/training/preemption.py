"""Turns SIGINT and SIGTERM into a request to stop after a step, the same one in all processes."""

import signal
import sys

from lm.devices import hosts

_AHEAD = 4  # steps; before its own of this number, each process knows what all have told


class Signals:
    """Turns the first SIGINT or SIGTERM into a request; a second one stops at once.

    Of several processes any may receive it. Each then tells at which step it is, and all stop
    `_AHEAD` steps after the last of them: a process cannot finish a step that another has not
    begun, so that none has gone so far without knowing.
    """

    def __init__(self):
        self._own = self._agreed = self._last = 0
        self._has_told = False

    def __enter__(self) -> "Signals":
        caught = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._receive) for number in caught}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def received(self, step: int) -> int:
        """The number of the signal that stops the run after this step; 0: there is none."""
        if hosts.process_count() == 1:
            return self._own
        return self._agreed if step >= self._last else 0

    def exchange(self, step: int) -> None:
        """Tells and learns what there is after a step; all processes call it after every step."""
        if hosts.process_count() == 1 or self._agreed:
            return
        if self._own:
            hosts.tell("notices/signal", str(self._own))
        received = self._own or int(hosts.notice("signal") or 0)
        if received and not self._has_told:
            hosts.tell(f"stops/{hosts.process_index()}", f"{step} {received}")
            self._has_told = True
        if self._has_told and len(told := hosts.told("stops")) == hosts.process_count():
            steps, signals = zip(*(map(int, each.split()) for each in told.values()), strict=True)
            self._agreed, self._last = max(signals), max(steps) + _AHEAD

    def at_end(self) -> int:
        """The signal that any process has received by the end of the run; 0: there is none."""
        if hosts.process_count() == 1:
            return self._own
        return max(map(int, hosts.gather(str(self._own))))

    def _receive(self, number: int, _) -> None:
        self._own = number
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
