"""Loads labelled examples of other files than a run's own into memory, as rows of the run's layout,
tokenizer and labels.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.config import Config
from lm.data import Tokenizer
from lm.data.sources import SOURCES
from lm.errors import UserError
from lm.tasks.base import Example, Labels, Task
from lm.tasks.layout import Layout, Row
from lm.tasks.prepare import has_rows, rows_of
from lm.tasks.records import Record, format_of, records

UNLABELLED = "unlabelled"  # a key of an example
_SHOWN = 5  # labels that a message names


@dataclasses.dataclass(frozen=True)
class LoadedExamples:
    """Some examples, and their rows; see `lm.tasks.base.LabelledRows`.

    Attributes:
      manifest: {"source": where they come from}.
      tokenizer, task, layout, labels: of the run.
      kept: the examples; "rows" is the first and the one after the last of their rows.
      table: the rows.
    """

    manifest: Mapping[str, Any]
    tokenizer: Tokenizer
    task: Task
    layout: Layout
    labels: Labels
    kept: list[Example]
    table: list[Row]

    def examples(self) -> list[Example]:
        """See `LabelledRows`."""
        return self.kept

    def rows(self, split: str) -> list[Row]:
        """See `LabelledRows`."""
        return self.table


def source_of(name: str) -> str:
    """The source that a flag names: one of `lm.data.sources`, or a path or pattern of files."""
    return name if name.partition(":")[0] in SOURCES else f"files:{name}"


def read_examples(
    config: Config, task: Task, labels: Labels, layout: Layout, names: Sequence[str]
) -> list[Example]:
    """The examples of sources; those without a label have the key `UNLABELLED`.

    Of a source that has splits of its own, the held-out ones. A file's ending says what it is, and
    config.task.format where it does not.

    Raises:
      UserError: there are none, one lacks a column, has more choices than the layout, or has a
        label that is none of `labels`.
    """
    examples = [
        task.example(record)
        if task.has_label(record)
        else task.unlabelled_example(record, labels) | {UNLABELLED: True}
        for name in names
        for record in _held_out(source_of(name), config)
    ]
    if not examples:
        raise UserError(f"{', '.join(names)} holds no examples; choose another file")
    _check_labels(task, labels, examples)
    for example in examples:
        if task.num_choices(example) > layout.choices:
            raise UserError(
                f"{example['place']} has {task.num_choices(example)} choices, but the run has "
                f"learned to choose among {layout.choices} at most; leave it out"
            )
    return examples


def encoded_in_parts(data: LoadedExamples, size: int) -> Iterator[LoadedExamples]:
    """The same with `size` examples at a time and their rows, so that little is held at once.

    Examples of which the task makes no row are left out.
    """
    for begin in range(0, len(data.kept), size):
        kept = data.kept[begin : begin + size]
        table = [*rows_of(data.task, kept, data.tokenizer, data.layout, data.labels)]
        yield dataclasses.replace(data, kept=list(filter(has_rows, kept)), table=table)


def _held_out(source: str, config: Config) -> list[Record]:
    form = "" if format_of(source) else config.task.format
    found = list(records(source, form, tuple(config.task.columns)))
    own = [each for each in found if each.split == "validation"]
    if not own and any(each.split for each in found):
        print(f"{source} has no validation split; all of its examples are read", file=sys.stderr)
    return own or found


def _check_labels(task: Task, labels: Labels, examples: Sequence[Example]) -> None:
    """Raises UserError where examples have labels that the task does not know."""
    places: dict[str, list[str]] = {}
    for example in examples:
        for label in task.known_labels(example):
            if label not in labels:
                places.setdefault(label, []).append(example["place"])
    if places:
        shown = [f"{name!r} ({len(each)}, first {each[0]})" for name, each in places.items()]
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        raise UserError(
            f"the run does not know these labels: {', '.join(shown[:_SHOWN])}{more}; it knows "
            f"{', '.join(labels)[:200]}. Mend them, or remove the labels to predict without metrics"
        )
