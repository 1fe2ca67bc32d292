"""Reads and writes files of text and JSON. A file is written whole or not at all; what is wrong
with a file that is read is said in one line that names it.
"""

import contextlib
import errno
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from lm.data.bucket import in_bucket
from lm.errors import UserError

# str.splitlines also cuts at U+2028, form feeds and others, which stand inside of texts and JSON.
_LINE_END = re.compile(r"\r\n|\n|\r")
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{12}\.partial")
_MAX_BYTES = 1 << 28  # the largest tokenizer.json in use has some 30 MB
# Of a file system that has no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """Gives the path to write to; the file takes its place when the block ends without error."""
    path = epath.Path(path)
    with _partial(path) as partial:
        yield partial
        partial.replace(path)


@contextlib.contextmanager
def _partial(path: epath.Path) -> Iterator[epath.Path]:
    """A path beside another, at which nothing is once the block ends."""
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.partial"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: epath.Path) -> None:
    """Removes what killed processes have left of files that they were replacing; for the process
    that holds the folder.
    """
    for child in folder.iterdir():
        if _PARTIAL.fullmatch(child.name):
            child.unlink(missing_ok=True)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file of UTF-8 whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


def create_text(path: epath.PathLike, text: str) -> bool:
    """Writes a file whole where there is none; False where there is one. Of several processes that
    try at the same time, one succeeds.
    """
    if not in_bucket(path):
        return _link_new(epath.Path(path), text)
    try:
        opened: Any = fsspec.open(os.fspath(path), "xt", auto_mkdir=False)
        with opened as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _link_new(path: epath.Path, text: str) -> bool:
    """The same, on a file system, where what a kill has left half written has another name."""
    with _partial(path) as partial:
        try:
            partial.write_text(text)
            os.link(partial, path)
        except FileExistsError:
            # NFS repeats a request whose answer was lost: the first one may have succeeded.
            return os.stat(partial).st_nlink == 2
        except FileNotFoundError:
            return False  # whoever holds the folder has removed it, or the file as a left-over
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _open_new(path, text)
    return True


def _open_new(path: epath.Path, text: str) -> bool:
    """The same, where there are no hard links: a kill may leave an empty file."""
    try:
        with open(path, "x") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError:  # such as a full disk
        path.unlink(missing_ok=True)
        raise
    return True


def write_json(path: epath.PathLike, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all; see `to_json`."""
    write_text(path, to_json(content, indent=2) + "\n")


def to_json(content: object, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON as its standard has it (RFC 8259): null for a NaN or an infinity, at any depth."""
    content = _finite(content)
    return json.dumps(content, allow_nan=False, indent=indent, ensure_ascii=ensure_ascii)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_text(file: Path) -> str:
    """The content of a file of text.

    Raises:
      UserError: it cannot be read, is larger than any such file, or is not UTF-8.
    """
    try:
        if (size := file.stat().st_size) > _MAX_BYTES:
            raise UserError(f"{file} has {size:,} bytes, more than any such file; fetch it again")
        return file.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); fetch "
            "it again"
        ) from None


def parse_json(
    text: str | bytes, file: os.PathLike[str] | str, remedy: str = "fetch it again"
) -> dict[str, Any]:
    """The JSON object that the text of a file is.

    Raises:
      UserError: it is not JSON, or something other than an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        cause = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{file} is not JSON ({cause}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is no JSON object, {{...}}; {remedy}")
    return value


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds; see `read_text` and `parse_json`."""
    return parse_json(read_text(file), file)


def read_json_if_exists(file: Path) -> dict[str, Any]:
    """The same; {} where there is no such file."""
    return read_json(file) if file.exists() else {}


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text and their numbers from 1, without what ends them: CR LF, LF or CR."""
    return enumerate(_LINE_END.split(text), start=1)
