"""The log of who trained a run: attempts.jsonl in its folder has a line for each process that took
it up. Only who holds the claim of the folder writes it, the whole file at a time.
"""

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from lm.data.files import to_json, write_text
from lm.errors import Interrupted, UserError
from lm.experiment.claim import Held, claim

ATTEMPTS = "attempts.jsonl"
_LONGEST = 200  # characters of an error's message


def read_attempts(folder: epath.PathLike) -> list[dict[str, Any]]:
    """The attempts at a run, in their order; those that cannot be read are left out.

    Each has:

    - "began": when, in UTC.
    - "host", "pid": the process.
    - "took_over": host and pid of who had the run before and did not let go of it, such as by a
      kill; None where nobody had.
    - "step": from which it went on; None where it ended before that was known.
    - "ended", "how": when and how it ended, "finished", "failed" or "interrupted", with the message
      of what failed under "error". Without them it goes on, or was killed.
    """
    path = epath.Path(folder) / ATTEMPTS
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]


@contextlib.contextmanager
def attempt(folder: epath.Path) -> Iterator[Callable[[int], None]]:
    """Records a block as an attempt at the run in a folder, which it claims unless the thread holds
    it already. Gives a function that records from which step the attempt goes on.

    A user's mistake that is found before there is a run in the folder is no attempt.
    """
    with claim(folder) as held:
        before, theirs = read_attempts(folder), held.taken_from
        record = {
            "began": _now(),
            "host": held.holder.host,
            "pid": held.holder.pid,
            "took_over": {"host": theirs.host, "pid": theirs.pid} if theirs else None,
            "step": None,
        }

        def write(**changes: object) -> None:
            record.update(changes)
            _write(folder, [*before, record])

        write()
        try:
            yield lambda step: write(step=step)
        except Held:  # it is another's file now
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):  # such as of a full disk, which the error tells
                if isinstance(error, UserError) and not (folder / "config.json").exists():
                    _write(folder, before)
                else:
                    write(ended=_now(), **_ending(error))
            raise
        write(ended=_now(), how="finished")


def _ending(error: BaseException) -> dict[str, str]:
    if isinstance(error, Interrupted | KeyboardInterrupt | BrokenPipeError):
        return {"how": "interrupted"}
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return {"how": "failed", "error": message[:_LONGEST]}


def _write(folder: epath.Path, records: list[dict[str, Any]]) -> None:
    if records:
        write_text(folder / ATTEMPTS, "".join(to_json(each) + "\n" for each in records))
    else:
        (folder / ATTEMPTS).unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
