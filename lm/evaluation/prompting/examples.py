"""Reads the questions of config.prompt and the examples shown before them, and draws these."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config import Config, override
from lm.errors import UserError
from lm.evaluation.task_evaluation import sample
from lm.generation.sample import count_repeats
from lm.tasks import build_task
from lm.tasks.base import Task
from lm.tasks.labels import class_name
from lm.tasks.records import Record, records


class Example(NamedTuple):
    """A record with its answers.

    Attributes:
      record: its columns.
      answers: the texts to choose from.
      label: the number of the correct one.
    """

    record: Record
    answers: Sequence[str]
    label: int


_Read = tuple[Record, dict[str, Any]]  # a record and its `Task.example`


@dataclasses.dataclass(frozen=True)
class Examples:
    """The data of config.prompt.

    Attributes:
      task: the task whose metrics apply: classification where all questions have the same answers,
        else multiple choice.
      labels: all labels, in order.
      manifest: {"source": the source of the questions}.
      questions: the examples to answer.
      shown: the examples that are drawn and shown with their answers.
    """

    task: Task
    labels: tuple[str, ...]
    manifest: Mapping[str, Any]
    questions: Sequence[Example]
    shown: Sequence[Example]


def read_examples(config: Config) -> Examples:
    """The examples of config.prompt.

    Questions are the source's held-out examples, or all where it has none. Shots come from
    config.prompt.shots_source, or else from the source's training examples, or else from the
    questions.

    Raises:
      UserError: there are none, or one lacks a column or has no such label.
    """
    prompt, words = config.prompt, tuple(config.prompt.verbalizers)
    kind = "classification" if words else "multiple_choice"
    # It has the columns of config.task, but no text: the template has it.
    task = dataclasses.replace(build_task(override(config, {"task.name": kind})), text=())
    labels = tuple(config.task.labels) or words
    numbers = {class_name(label): number for number, label in enumerate(labels)}

    def read(source: str) -> list[_Read]:
        found = records(source, config.task.format, tuple(config.task.columns))
        return [(record, task.example(record)) for record in found]

    splits: dict[str, list[_Read]] = {"validation": [], "train": []}
    for each in read(prompt.source):
        splits[each[0].split or "validation"].append(each)
    if prompt.shots_source:
        shots = read(prompt.shots_source)
        splits["train"] = [each for each in shots if each[0].split != "validation"]
    if not splits["validation"]:
        raise UserError(f"config.prompt.source = {prompt.source!r} holds no questions")
    if not words:
        _, notes = task.infer_options([found for split in splits.values() for _, found in split])
        print(*(f"{prompt.source}: {note}" for note in notes), sep="\n", file=sys.stderr)

    def answered(record: Record, found: dict[str, Any]) -> Example:
        if words:
            return Example(record, words, task.number_of(found["label"], numbers, found))
        return Example(record, found["choices"], found["label"])

    held_out, training = ([answered(*each) for each in split] for split in splits.values())
    questions = sample(held_out, config.evaluation.num_examples)
    most = max(len(each.answers) for each in questions)
    labels = labels if words else tuple(map(str, range(most)))
    return Examples(task, labels, {"source": prompt.source}, questions, training or held_out)


def draw_shots(
    labels: Sequence[int], count: int, seed: int, question: int, balanced: bool, barred: set[int]
) -> list[int]:
    """Draws the examples shown before a question: numbers, in order; each question has its own draw
    (as in Brown et al. 2020, 2005.14165).

    Args:
      labels: the labels of the examples to draw from.
      count: how many to draw, without replacement.
      seed, question: the draw is a pure function of both.
      balanced: labels are equally frequent, except for a random remainder.
      barred: numbers of examples that are the question itself.

    Returns:
      `count` numbers, fewer where there are not as many.
    """
    if not count:
        return []
    random = np.random.default_rng([seed, question])
    order = [int(i) for i in random.permutation(len(labels)) if int(i) not in barred]
    if not balanced:
        return order[:count]
    turns = count_repeats(labels[number] for number in order)
    turn = dict(zip(order, turns, strict=True))
    chosen = sorted(order, key=turn.__getitem__)[:count]
    return [chosen[i] for i in random.permutation(len(chosen))]
