"""Ends this process with one line when JAX's distributed runtime finds that another one is lost.

The runtime then logs a fatal error with a C++ stack trace and aborts; the callback that it offers
instead cannot be called in Python (jaxlib 0.10 to 0.12 fail to convert its argument). So what C++
writes to stderr passes through a pipe, in which lines of the runtime are kept back, and a handler
of SIGABRT prints the line.
"""

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

# Where a message of C++ begins: its level, date, time, thread, file and line.
_BEGIN = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ (\S+):\d+\] ")
_RUNTIME = re.compile(r"coordination_service\w*\.cc|client\.h|distributed_runtime\w*\.cc")
_FATAL = "the JAX distributed service detected fatal errors"
_SILENT = re.compile(r"stopped sending heartbeats\):\n((?:.*\d+\n)+)")
_READ = 0.3  # seconds until the pipe is read to its end

_kept: list[object] = []  # ctypes frees a function to which nothing refers


def end_with_line(line: Callable[[Sequence[int]], str | None], status: int) -> None:
    """From now on a lost process ends this one with the status, and `line(lost)` on stderr; where
    that is None, with status 0.

    `lost` are the indices of those that sent no heartbeats; [] where the first one, which counts
    them, is lost itself.
    """
    sys.stderr.flush()
    stderr, (reader, writer) = os.dup(2), os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    sys.stderr = os.fdopen(stderr, "w", buffering=1, closefd=False)
    runtime: list[str] = []
    threading.Thread(target=_forward, args=(reader, stderr, runtime), daemon=True).start()

    def aborted(_: int) -> None:
        time.sleep(_READ)
        text = "".join(runtime)
        if _FATAL not in text:  # another failure, of which C++ has written
            libc.signal(signal.SIGABRT, 0)
            os.abort()
        found = _SILENT.findall(text)
        lost = re.findall(r"(\d+)\n", found[-1]) if found else []
        if (text := line([*map(int, lost)])) is None:
            os._exit(0)
        os.write(stderr, f"{text}\n".encode())
        os._exit(status)

    libc = ctypes.CDLL(None)
    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted))
    libc.signal(signal.SIGABRT, _kept[-1])


def _forward(reader: int, stderr: int, runtime: list[str]) -> None:
    """Writes what comes through the pipe to stderr, and collects messages of the runtime."""
    is_runtime = False
    with os.fdopen(reader, errors="replace") as lines:
        for line in lines:
            if begins := _BEGIN.match(line):
                is_runtime = bool(_RUNTIME.fullmatch(begins[1]))
            if is_runtime:
                runtime.append(line)
            else:
                os.write(stderr, line.encode())
