"""Reads the questions of config.prompt and the examples shown before them, and draws these."""

import collections
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config import Config
from lm.errors import UserError
from lm.evaluation.task_evaluation import sample
from lm.tasks import build_task
from lm.tasks.base import Task, number_of
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
    prompt, task = config.prompt, _task(config)
    words = tuple(prompt.verbalizers)
    labels = tuple(config.task.labels) or words
    numbers = {class_name(label): number for number, label in enumerate(labels)}

    def read(source: str) -> list[_Read]:
        found = records(source, config.task.format, tuple(config.task.columns))
        return [(record, task.example(record)) for record in found]

    splits: dict[str, list[_Read]] = {"validation": [], "train": []}
    for each in read(prompt.source):
        splits[each[0].split or "validation"].append(each)
    if prompt.shots_source:
        splits["train"] = [
            each for each in read(prompt.shots_source) if each[0].split != "validation"
        ]
    if not splits["validation"]:
        raise UserError(f"config.prompt.source = {prompt.source!r} holds no questions")
    if not words:
        _, notes = task.infer_options([found for split in splits.values() for _, found in split])
        print(*(f"{prompt.source}: {note}" for note in notes), sep="\n", file=sys.stderr)
    answered = {
        split: [
            Example(record, words, number_of(found["label"], numbers, found))
            if words
            else Example(record, found["choices"], found["label"])
            for record, found in each
        ]
        for split, each in splits.items()
    }
    questions = sample(answered["validation"], config.evaluation.num_examples)
    most = max(len(each.answers) for each in questions)
    labels = labels if words else tuple(map(str, range(most)))
    shown = answered["train"] or answered["validation"]
    return Examples(task, labels, {"source": prompt.source}, questions, shown)


def _task(config: Config) -> Task:
    """The task of the answers, with config.task's columns but no text: the template has it."""
    task_config = config.copy_and_resolve_references()
    task_config.task.name = "classification" if config.prompt.verbalizers else "multiple_choice"
    return dataclasses.replace(build_task(task_config), text=())


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
    seen: collections.Counter[int] = collections.Counter()
    turn = {}
    for number in order:
        turn[number] = seen[labels[number]]
        seen[labels[number]] += 1
    chosen = sorted(order, key=turn.__getitem__)[:count]
    return [chosen[i] for i in random.permutation(len(chosen))]
