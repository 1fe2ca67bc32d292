"""Reads JSON files that come from elsewhere, such as those of a checkpoint's folder: whatever is
wrong with one is a single line that names the file.
"""

import json
from pathlib import Path
from typing import Any

from lm.errors import UserError

_MOST_BYTES = 1 << 28  # the largest tokenizer.json in use has some 30 MB


def read_text(file: Path) -> str:
    """The content of a file of text.

    Raises:
      UserError: it cannot be read, is larger than any such file, or is not UTF-8.
    """
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise UserError(f"{file} has {size:,} bytes, more than any such file; fetch it again")
        return file.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); fetch "
            "it again"
        ) from None


def parse_object(text: str, file: Path | str) -> dict[str, Any]:
    """The JSON object that the text of a file is.

    Raises:
      UserError: it is not JSON, or something other than an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        cause = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{file} is not JSON ({cause}); fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is no JSON object, {{...}}; fetch it again")
    return value


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds; see `read_text` and `parse_object`."""
    return parse_object(read_text(file), file)


def read_object_if_there(file: Path) -> dict[str, Any]:
    """The same; {} where there is no such file."""
    return read_object(file) if file.exists() else {}
