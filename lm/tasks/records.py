"""Reads labelled records: rows of CSV or TSV, lines of JSON, sentences of CoNLL columns, or
examples of TensorFlow Datasets. Every record knows where it stands, for messages.
"""

import csv
import functools
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.data import sources, tfds_source
from lm.data.files import lines_of
from lm.errors import UserError
from lm.tasks.conll import conll, conllu

Line = tuple[int, dict[str, Any]]  # the number of a record's line, and its values by column
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}


class Record(NamedTuple):
    """One example as its source has it."""

    place: str  # for messages: "tweets.tsv line 7"
    values: Mapping[str, Any]  # by column
    split: str | None = None  # "train" or "validation" where the source has splits of its own


def records(source: str, form: str = "", columns: Sequence[str] = ()) -> Iterator[Record]:
    """Yields the records of a source, in an order that does not change.

    Args:
      source: `files:PATTERN` or `tfds:NAME[/CONFIG]`.
      form: of files, a name of `FORMATS`; "" goes by the file's ending (.csv, .tsv, .jsonl, .conll,
        .conllu, with or without .gz, .bz2, .xz or .zst behind it).
      columns: names of the columns where the file's first line does not give them.

    Raises:
      UserError: the source is unknown, a file is of no known form, or a line cannot be read.
    """
    if source.startswith("tfds:"):
        yield from _public(source.removeprefix("tfds:"))
        return
    if not source.startswith("files:"):
        raise UserError(f"{source!r} names no labelled examples; use files:PATTERN or tfds:NAME")
    for document in sources.documents(source):
        name = Path(document.name).name
        ending = form or format_of(name)
        if ending not in FORMATS:
            raise UserError(
                f"{name} ends in none of {', '.join(FORMATS)}; say which it is in "
                "config.task.format"
            )
        for number, values in FORMATS[ending](document.text, tuple(columns), name):
            yield Record(f"{name} line {number}", values)


def format_of(name: str) -> str:
    """The name of `FORMATS` that a file's ending is, in letters of any case; "" for none."""
    endings = (ending[1:].lower() for ending in reversed(Path(name).suffixes))
    return next((ending for ending in endings if ending in FORMATS), "")


def _table(text: str, columns: tuple[str, ...], name: str, **dialect: Any) -> Iterator[Line]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect)
    try:
        for cells in reader:
            if not any(cells):
                continue
            if not columns:
                columns = tuple(cells)
                if twice := [name for name in columns if columns.count(name) > 1]:
                    raise UserError(
                        f"{name} has two columns {twice[0]!r} in its first line; rename one"
                    )
            elif len(cells) != len(columns):
                raise UserError(
                    f"{name} line {reader.line_num} has {len(cells)} columns, not "
                    f"{len(columns)} ({shown_columns(columns)}); "
                    f"{separator_hint(min(cells, columns, key=len)) or 'mend that line'}, or name "
                    "the columns in config.task.columns"
                )
            else:
                yield reader.line_num, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{name} line {reader.line_num} cannot be read: {error}") from None


def _jsonl(text: str, columns: tuple[str, ...], name: str) -> Iterator[Line]:
    del columns
    for number, line in lines_of(text):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if "\\u" in line:
                json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{name} line {number} has an escape from \\uD800 to \\uDFFF that is half a "
                "character; mend it"
            ) from None
        except (ValueError, RecursionError) as error:
            cause = str(error).partition(":")[0]  # and not where in the line, or a long number
            raise UserError(f"{name} line {number} is not JSON ({cause}); mend it") from None
        if not isinstance(values, dict):
            raise UserError(f"{name} line {number} is no JSON object, {{...}}; mend it")
        yield number, values


def _public(name: str) -> Iterator[Record]:
    builder = tfds_source.prepared(name)
    # MNLI has two; the one of the genres that it trains on comes first in the literature.
    held_out = ("validation", "validation_matched", "dev", "test")
    for split, other, index, example in tfds_source.examples(name, builder, held_out):
        values = {key: _plain(builder.info.features[key], example[key]) for key in example}
        if all(value == [] for value in values.values()):
            continue  # CoNLL-2003's reader ends every file with a sentence of no words
        yield Record(f"tfds:{name} {other} example {index}", values, split)


def _plain(feature: Any, value: Any) -> Any:
    """A value of TFDS as JSON would have it; classes by name, None for a class that is hidden."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else None
    if isinstance(feature, tfds.features.Text):
        return value.decode("utf-8")
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):
            return {key: [_plain(inner[key], each) for each in value[key]] for key in value}
        return [_plain(inner, each) for each in value]
    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _plain(feature[key], value[key]) for key in value}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.tolist() if hasattr(value, "tolist") else value


def shown_columns(names: Iterable[str]) -> str:
    """The names of columns, those in quotes that could be misread: with spaces around, or empty."""
    return ", ".join(
        name if name == name.strip() and name.isprintable() and name else repr(name)
        for name in names
    )


def separator_hint(names: Sequence[str]) -> str:
    """A sentence where one column's name, or cell, looks like several; "" where it does not."""
    if len(names) == 1:
        for mark, name in _SEPARATORS.items():
            if mark in names[0]:
                written = "write commas in a .csv and tabs in a .tsv"
                return f"columns seem to be parted by {name}: {written}"
    return ""


def no_column(place: str, name: str, names: Sequence[str], remedy: str) -> str:
    """The message for a column that a record lacks."""
    alike = [each for each in names if each.strip().lower() == name.strip().lower()]
    hint = f"the name is {alike[0]!r} there" if alike else separator_hint(names)
    hint = f"; {hint}" if hint else ""
    return f"{place} has no column {name!r}, only {shown_columns(names)}{hint}; {remedy}"


FORMATS: dict[str, Callable[..., Iterator[Line]]] = {
    "csv": _table,
    # Quotes are text, as in GLUE's own files.
    "tsv": functools.partial(_table, delimiter="\t", quoting=csv.QUOTE_NONE),
    "jsonl": _jsonl,
    "conll": conll,
    "conllu": conllu,
}
