"""Reads the documents of a source: `stdlib`, `files:PATTERN`, `tfds:NAME[/CONFIG]` or
`synthetic:OPTIONS`, or pairs of texts, `docstrings` or `pairs:PATTERN`, always in the same order. A
fingerprint changes when the text of a source may have.
"""

import bz2
import codecs
import dataclasses
import glob
import gzip
import lzma
import os
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm.data import synthetic, text_pairs, tfds_source
from lm.errors import UserError


class Document(NamedTuple):
    """One text: what is deduplicated, split and tokenized as a whole."""

    name: str
    text: str
    split: str | None = None  # "train" or "validation" where the source has splits of its own
    encoder_text: str | None = None  # of a pair, the text that `text` answers

    @property
    def texts(self) -> list[str]:
        """What is tokenized of it: of a pair, both sides."""
        return [self.text] if self.encoder_text is None else [self.encoder_text, self.text]


@dataclasses.dataclass(frozen=True)
class Source:
    """How one kind of source is read: both functions take what follows the colon."""

    documents: Callable[[str], Iterator[Document]]
    fingerprint: Callable[[str], Any]  # JSON: changes when the text may have changed
    pairs: bool = False  # its documents are pairs


def documents(source: str) -> Iterator[Document]:
    """Yields the documents of `source`, in an order that does not change.

    Args:
        source: a name of `SOURCES`, then a colon and an argument where it takes one: `stdlib`,
            `files:books/**/*.txt.gz`, `tfds:lm1b`, `synthetic:rank=16,words=1024`.

    Raises:
        UserError: the source is unknown, matches nothing, or holds bytes that are not UTF-8.
    """
    reader, argument = _parse(source)
    yield from reader.documents(argument)


def fingerprint(source: str) -> Any:
    """A JSON value that changes whenever the text of `source` may have; reads no text.

    Raises:
        UserError: the source is unknown or matches nothing.
    """
    reader, argument = _parse(source)
    return reader.fingerprint(argument)


def complete(source: str, tokenizer: str, vocab_size: int | None) -> str:
    """The full name of a source: that of a synthetic language says its V, the tokenizer's.

    Raises:
        UserError: the source is synthetic and the tokenizer is not characters.
    """
    name, _, argument = source.partition(":")
    if name != "synthetic":
        return source
    if tokenizer != "characters":
        raise UserError(
            f"source {source!r} has one character for each word; use tokenizer characters, not "
            f"{tokenizer}, with vocab_size as the number of words"
        )
    return f"synthetic:{argument.rstrip(',')},words={vocab_size}"


def holds_pairs(source: str) -> bool:
    """Whether the documents of `source` are pairs.

    Raises:
        UserError: the source is unknown.
    """
    return _parse(source)[0].pairs


def _parse(source: str) -> tuple[Source, str]:
    name, _, argument = source.partition(":")
    if name not in SOURCES:
        raise UserError(
            f"unknown source {source!r}: use stdlib, files:PATTERN, tfds:NAME[/CONFIG] or "
            "synthetic:rank=R, and for pairs docstrings or pairs:PATTERN"
        )
    if name in _WHOLE and argument:
        raise UserError(f"source {source!r}: {name} takes no argument; say {name}")
    if name not in _WHOLE and not argument:
        raise UserError(f"source {source!r} does not say which; use {name}:WHAT")
    return SOURCES[name], argument


# --- stdlib: text that every machine has -----------------------------------------------------

_WHOLE = ("stdlib", "docstrings")  # take no argument
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def _stdlib_documents(_: str) -> Iterator[Document]:
    root = sysconfig.get_path("stdlib")
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        names += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            if name.endswith(".py")
        ]
    for name in sorted(names):
        try:
            text = Path(root, name).read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a few known files declare another encoding, as PEP 263 allows
        yield Document(name, text.removeprefix("\ufeff"))


def _stdlib_fingerprint(_: str) -> Any:
    return [sys.version, sysconfig.get_path("stdlib")]


# --- files:PATTERN: one local file, one document ---------------------------------------------

# What a file of another encoding begins with; the longer ones first.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def _matching(pattern: str) -> list[str]:
    found = glob.glob(os.path.abspath(os.path.expanduser(pattern)), recursive=True)
    paths = sorted(path for path in found if os.path.isfile(path))
    if not paths:
        raise UserError(
            f"files:{pattern} matches no file; quote the pattern, and use ** for all folders below"
        )
    return paths


def _files_documents(pattern: str) -> Iterator[Document]:
    for path in _matching(pattern):
        yield Document(path, _decoded(path, _decompressed(path)))


def _files_fingerprint(pattern: str) -> Any:
    stats = [(path, os.stat(path)) for path in _matching(pattern)]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _decoded(path: str, data: bytes) -> str:
    """The text of a file without its mark of UTF-8; UserError where it is of another encoding."""
    if (encoding := _wide_encoding(data)) is not None:
        raise UserError(
            f"{path} is {encoding}, and text is read as UTF-8; convert it (iconv -f {encoding} -t "
            "UTF-8) or narrow the pattern"
        )
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} of "
            "its text; convert it (iconv -f LATIN1 -t UTF-8) or narrow the pattern"
        ) from None


def _wide_encoding(data: bytes) -> str | None:
    """The encoding by units of two or four bytes that a mark tells, or that every second is 0."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return encoding
    even, odd = data[:1000:2], data[1:1000:2]
    for zeros, others, encoding in ((odd, even, "UTF-16LE"), (even, odd, "UTF-16BE")):
        if len(zeros) > 1 and 2 * zeros.count(0) > len(zeros) and not others.count(0):
            return encoding
    return None


def _decompressed(path: str) -> bytes:
    data = Path(path).read_bytes()
    decompress = DECOMPRESSORS.get(Path(path).suffix.lower())
    if decompress is None:
        return data
    try:
        return decompress(data)
    except (OSError, EOFError, lzma.LZMAError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be decompressed: {error}; fetch it again") from None


def _zstandard(data: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise UserError("reading .zst needs zstandard: pip install zstandard") from None
    parts = []
    while data:  # a .zst may hold several frames, and a truncated one must not pass as whole
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(data))
        except zstandard.ZstdError as error:
            raise ValueError(error) from None
        if not frame.eof:
            raise ValueError("it ends in the middle of a frame")
        data = frame.unused_data
    return b"".join(parts)


DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _zstandard,
}


# --- tfds:NAME[/CONFIG] ----------------------------------------------------------------------


def _tfds_documents(name: str) -> Iterator[Document]:
    for split, index, text in tfds_source.texts(name):
        yield Document(f"{split}/{index}", text, split)


# --- synthetic:rank=R,words=V,... ------------------------------------------------------------


def _synthetic_documents(options: str) -> Iterator[Document]:
    for index, text in enumerate(synthetic.texts(options)):
        yield Document(str(index), text)


def _synthetic_fingerprint(options: str) -> Any:
    return [synthetic.VERSION, dataclasses.asdict(synthetic.language(options))]


# --- pairs -----------------------------------------------------------------------------------


def _docstring_pairs(_: str) -> Iterator[Document]:
    for module in _stdlib_documents(""):
        for place, (signature, summary) in enumerate(text_pairs.of_module(module.text)):
            yield Document(f"{module.name}#{place}", summary, encoder_text=signature)


def _file_pairs(pattern: str) -> Iterator[Document]:
    for file in _files_documents(pattern):
        for number, (source, text) in text_pairs.of_lines(file.name, file.text):
            yield Document(f"{file.name}:{number}", text, encoder_text=source)


SOURCES: dict[str, Source] = {
    "stdlib": Source(_stdlib_documents, _stdlib_fingerprint),
    "files": Source(_files_documents, _files_fingerprint),
    "tfds": Source(_tfds_documents, tfds_source.fingerprint),
    "synthetic": Source(_synthetic_documents, _synthetic_fingerprint),
    "docstrings": Source(_docstring_pairs, _stdlib_fingerprint, pairs=True),
    "pairs": Source(_file_pairs, _files_fingerprint, pairs=True),
}
