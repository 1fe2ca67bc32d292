"""Explains what is no mistake of the user's and no error of the code: a full disk, a folder that
may not be written, a file that cannot be read just now, and too little memory. One line each, with
a remedy that can be taken.

`run.py` prints the line and exits with status 1.
"""

import errno
import os
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
# As TensorStore tells the same in the text of another kind of error.
_FULL_TEXT = ("No space left on device", "Disk quota exceeded")
# What may be over at the next try, such as of a network's file server.
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
_PASSING_TEXT = (*map(os.strerror, _PASSING), "UNAVAILABLE", "DEADLINE_EXCEEDED")
_DENIED_TEXT = ("Permission denied", "PERMISSION_DENIED", "Read-only file system")

# What a run in the same workdir may change.
_SMALLER = (
    "in training raise config.accumulation or set config.model.remat=True; or a smaller "
    "config.attention.block and config.output.block, or spread it with config.mesh.fsdp"
)


def explain(error: BaseException) -> str | None:
    """What failed and what to do, in one line; None where it is another kind of error."""
    return of_storage(error) or of_memory(error)


def of_storage(error: BaseException) -> str | None:
    """Likewise, of a disk or a folder, which every further run would meet again."""
    for each in _chain(error):
        number, text = getattr(each, "errno", None), str(each)
        if number in _FULL or any(word in text for word in _FULL_TEXT):
            return (
                f"no space is left{_place(each)}: free some, such as older checkpoints, or use "
                "another config.cache; the same command then goes on from the last checkpoint"
            )
        if number in _DENIED or any(word in text for word in _DENIED_TEXT):
            return (
                f"no right to read or write{_place(each)}: change its permissions, or use another "
                "--workdir or config.cache"
            )
        if number in _PASSING or any(word in text for word in _PASSING_TEXT):
            return (
                f"reading or writing failed{_place(each)} ({' '.join(text.split())[:120]}), which "
                "may pass: run the same command again; if it stays, look after the disk or network"
            )
    return None


def of_memory(error: BaseException) -> str | None:
    """Likewise, of memory, which another run may have enough of; for what is not `of_storage`."""
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return f"the memory of this machine is used up: run less beside it, or {_SMALLER}"
        if "RESOURCE_EXHAUSTED" in str(each):
            first = str(each).split("RESOURCE_EXHAUSTED:")[-1].strip().splitlines()[0]
            return f"the memory of a device is used up ({first[:120]}): {_SMALLER}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, then what it came from."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        hidden = following.__suppress_context__  # raised "from None"
        following = following.__cause__ or (None if hidden else following.__context__)
    return iter(seen)


def _place(error: BaseException) -> str:
    """The file of an error, or of what it came from; TensorStore quotes it in its text."""
    for each in _chain(error):
        quoted = str(each).split('"')
        name = getattr(each, "filename", None) or (quoted[1] if len(quoted) > 1 else None)
        if name:
            return f" for {name}"
    return ""
