"""Says what a command is doing where nothing else would for some seconds."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import tqdm

PATIENCE = 3.0  # seconds without a word


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Says on stderr what a block does once it has taken `PATIENCE`, and then how long it took."""
    begun, told = time.perf_counter(), threading.Event()

    def tell() -> None:
        told.set()
        _say(f"{what} ...")

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if told.is_set():
            _say(f"{what}: {time.perf_counter() - begun:.0f} s")


def _say(line: str) -> None:
    """Above a progress bar, where there is one."""
    tqdm.tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
