"""How does a failed load stay one line? Without other threads' tracebacks, and by its cause."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps stderr clean while a load fails: TensorStore's threads print tracebacks to it."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    except Exception:
        time.sleep(0.5)  # Stragglers print when the event loop is gone.
        raise
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cause(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = " ".join(str(error).split())
    return line if len(line) <= 160 else line[:157] + "..."
