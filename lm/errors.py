"""Errors that end a command with one line instead of a traceback: mistakes of the user (exit status
2), interruptions, and failures of disk or memory (exit status 1), with hints on misspelt names.
"""

import difflib
import errno
import os
import re
import traceback
from collections.abc import Iterable, Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
# As TensorStore tells the same in the text of another kind of error.
_FULL_TEXT = ("No space left on device", "Disk quota exceeded")
# What may be over at the next try, such as of a network's file server.
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
_PASSING_TEXT = (*map(os.strerror, _PASSING), "UNAVAILABLE", "DEADLINE_EXCEEDED")
_DENIED_TEXT = ("Permission denied", "PERMISSION_DENIED", "Read-only file system")

# The packages that read buckets, and the extra that installs them.
_CLIENTS = ("s3fs", "gcsfs", "botocore", "aiobotocore", "google", "aiohttp")

# What a run in the same workdir may change.
_SMALLER = (
    "in training raise config.grad_accum_steps or set config.model.remat=True; or a smaller "
    "config.attention.query_chunk_size and config.output.token_chunk_size, or spread it with "
    "config.mesh.fsdp"
)

# Below this share of letters in common, a suggestion would be a guess.
_NEAR = 0.7


def counted(number: int, noun: str) -> str:
    """A number with a noun whose plural ends in s: "1 document", "2 documents"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class UserError(Exception):
    """A mistake that the user can mend: one line that names the value, the limit and the remedy.

    `run.py` prints the line and exits with status 2.
    """


class Interrupted(Exception):
    """A run was asked to stop and has saved its state; `signal` is the number that asked."""

    def __init__(self, step: int, signal: int):
        super().__init__(f"stopped at step {step}, saved; the same command goes on from there")
        self.signal = signal


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that there is not: "; did you mean ...?", or nothing.

    Dotted names and paths are near where each part is, so that a long group in common makes no key
    near; a key that stands in a single other group is meant as well.
    """
    names = list(names)
    likeness = {each: _likeness(name, each) for each in names}
    best = max(names, key=lambda each: likeness[each], default="")
    if best and likeness[best] >= _NEAR:
        return f"; did you mean {best}?"
    group, _, key = name.rpartition(".")
    elsewhere = [each for each in names if group and each.rpartition(".")[2] == key]
    return f"; did you mean {elsewhere[0]}?" if len(elsewhere) == 1 else ""


def _likeness(name: str, other: str) -> float:
    """Of the two names' parts that are least alike: 0, nothing in common, to 1, the same."""
    parts, others = (re.split(r"[./]", each.lower()) for each in (name, other))
    if len(parts) != len(others):
        return 0.0
    pairs = zip(parts, others, strict=True)
    return min(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)


def one_of(key: str, value: str, names: Iterable[str]) -> None:
    """Raises UserError, with the nearest name, where the value of a config key is none of the
    names.
    """
    if value not in names:
        hint = nearest(str(value), names)
        raise UserError(f"config.{key} = {value!r} is not one of {', '.join(names)}{hint}")


def explain(error: BaseException) -> str | None:
    """What failed and what to do, in one line; None where it is another kind of error."""
    return of_storage(error) or of_memory(error)


def of_storage(error: BaseException) -> str | None:
    """Likewise, of a disk or a folder, which every further run would meet again."""
    for each in _chain(error):
        number, text = getattr(each, "errno", None), str(each)
        if line := _of_bucket(each):
            return line
        if number in _FULL or any(word in text for word in _FULL_TEXT):
            return (
                f"no space is left{_place(each)}: free some, such as older checkpoints, or use "
                "another config.cache_dir; the same command then goes on from the last checkpoint"
            )
        if number in _DENIED or any(word in text for word in _DENIED_TEXT):
            return (
                f"no right to read or write{_place(each)}: change its permissions, or use another "
                "--workdir or config.cache_dir"
            )
        if isinstance(each, OSError) and _is_of_new_folder(each):
            return f"the folder {each.filename} cannot be made ({each.strerror}): use another one"
        if number in _PASSING or any(word in text for word in _PASSING_TEXT):
            return (
                f"reading or writing failed{_place(each)} ({' '.join(text.split())[:120]}), which "
                "may pass: run the same command again; if it stays, look after the disk or network"
            )
    return None


def _of_bucket(error: BaseException) -> str | None:
    """Likewise, of a bucket that cannot be reached."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) and ("s3fs" in text or "gcsfs" in text):
        return f'{text}: buckets need pip install -e ".[bucket]"'
    if isinstance(error, FileNotFoundError) and "bucket does not exist" in text.lower():
        return f"there is no such bucket ({text[:120]}): make it, or use another --workdir"
    if type(error).__module__.partition(".")[0] in _CLIENTS:
        return (
            f"the bucket cannot be read or written ({text[:160]}): check its name, the credentials "
            "and the network; the same command then goes on from the last checkpoint"
        )
    return None


def _is_of_new_folder(error: OSError) -> bool:
    """Whether an error comes from making a folder, as in /proc, or below what is a file."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool({"mkdir", "makedirs"} & set(frames[-1:]))


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
