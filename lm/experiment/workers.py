"""Starts workers on this machine, commands with a share each of its cores or accelerators, shows
their output on one screen, and waits for them.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TextIO

from lm.devices.hosts import process_count
from lm.devices.shares import Share, available_cores, divide
from lm.errors import UserError

_RUN = Path(__file__).parents[2] / "run.py"
REPLACED = 3  # times that a worker is started again which was killed, such as for want of memory
_LAST_LINES = 5.0  # seconds for what an ended worker has still printed


def train_by_workers(jobs: int, flags: Sequence[str]) -> int:
    """Trains an ablation by workers of this machine, each with its share of cores or accelerators.

    Args:
      jobs: how many workers there are.
      flags: of `run.py sweep`, with which each of them is started.

    Returns:
      The exit status: see `run_workers`.

    Raises:
      UserError: there are not so many cores or accelerators, or the command runs on several hosts.
    """
    if process_count() > 1:
        raise UserError(
            f"--jobs={jobs} starts workers on one machine, and this command runs on "
            f"{process_count()}; leave out --jobs, or start sweep --share on each of them"
        )
    command = [sys.executable, str(_RUN), "sweep", *flags, "--share", "--jobs=1"]
    return run_workers(command, divide(jobs))


def run_workers(command: Sequence[str], shares: Sequence[Share]) -> int:
    """Runs the same command once for each share, until all have ended.

    Each line that worker N prints is shown after "[N] ", on the stream where it printed it. SIGINT
    and SIGTERM are passed on to all workers, which are waited for. One that is killed is started
    again, up to `REPLACED` times; the others go on meanwhile.

    Args:
      command: of workers that divide the work among themselves, such as by claims, so that one
        which ends with status 0 has seen all of it done.
      shares: of this machine; see `lm.devices.shares.divide`.

    Returns:
      128 + N after signal N; 0 where a worker has ended with it; else the largest status, of a
      worker that was killed 1.
    """
    return _Workers(command, shares).run()


class _Workers:
    def __init__(self, command: Sequence[str], shares: Sequence[Share]):
        self._command, self._shares = command, shares
        self._processes: dict[int, subprocess.Popen[str]] = {}
        # The number of a worker that has ended, with its status; None: nobody reads our output.
        self._ended: queue.SimpleQueue[tuple[int, int | None]] = queue.SimpleQueue()
        self._signal, self._printing = 0, threading.Lock()

    def run(self) -> int:
        """Starts all and waits until all have ended."""
        started = dict.fromkeys(range(1, len(self._shares) + 1), 0)
        statuses: list[int] = []
        unread = False
        with on_signals(self._receive):
            try:
                for number in started:
                    self._start(number)
                while self._processes:
                    number, status = self._ended.get()
                    if status is None:
                        unread = True
                        self._send(signal.SIGTERM)
                        continue
                    del self._processes[number]
                    stopping = unread or self._signal
                    if status < 0 and not stopping:
                        again = started[number] < REPLACED
                        self._tell_killed(number, -status, again)
                        if again:
                            started[number] += 1
                            self._start(number)
                            continue
                    statuses.append(status if status >= 0 else 1)
            finally:
                self._send(signal.SIGTERM)
        if unread:
            raise BrokenPipeError
        if self._signal:
            return 128 + self._signal
        return 0 if 0 in statuses else max(statuses)

    def _start(self, number: int) -> None:
        share, cores = self._shares[number - 1], available_cores()
        if share.cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, share.cores)  # which the process below inherits
        try:
            process = subprocess.Popen(
                self._command,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(share.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
            )
        finally:
            if share.cores is not None and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)
        self._processes[number] = process
        threading.Thread(target=self._attend, args=(number, process), daemon=True).start()
        if self._signal:  # came just before
            process.send_signal(self._signal)

    def _attend(self, number: int, process: subprocess.Popen[str]) -> None:
        """Shows what a worker prints, until it has ended."""
        assert process.stdout is not None and process.stderr is not None
        streams = (process.stdout, sys.stdout), (process.stderr, sys.stderr)
        relays = [
            threading.Thread(target=self._relay, args=(number, *each), daemon=True)
            for each in streams
        ]
        for relay in relays:
            relay.start()
        status = process.wait()
        for relay in relays:
            relay.join(_LAST_LINES)
        self._ended.put((number, status))

    def _relay(self, number: int, source: IO[str], target: TextIO) -> None:
        unread = False
        for line in source:  # is read on, or the worker would wait
            try:
                if not unread:
                    self._print(f"[{number}] {line.rstrip()}", target)
            except BrokenPipeError:
                unread = True
                self._ended.put((number, None))

    def _print(self, line: str, target: TextIO) -> None:
        with self._printing:
            print(line, file=target, flush=True)

    def _tell_killed(self, number: int, by: int, again: bool) -> None:
        with contextlib.suppress(BrokenPipeError):
            name = signal.Signals(by).name
            then = "another takes its place" if again else "none takes its place any more"
            self._print(f"run.py: worker {number} was ended by {name}; {then}", sys.stderr)

    def _receive(self, number: int) -> None:
        self._signal = number
        self._send(number)

    def _send(self, number: int) -> None:
        for process in list(self._processes.values()):
            process.send_signal(number)  # does nothing where it has ended


@contextlib.contextmanager
def on_signals(receive: Callable[[int], None]) -> Iterator[None]:
    """Calls `receive` with the number of each SIGINT and SIGTERM that comes while a block runs."""
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, lambda number, _: receive(number)) for each in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
