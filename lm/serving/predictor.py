"""Predicts labels of single examples with a run of a task."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from lm.checkpoints.restored import Restored
from lm.errors import UserError
from lm.serving.row_queue import Arrays
from lm.tasks.base import Example, Prediction
from lm.tasks.prepare import rows_of
from lm.tasks.records import Record
from lm.training.train_state import Params

# What an input may be: a text, several (or words), or columns as a file of examples has them.
Input = str | Sequence[str] | Mapping[str, Any]

# The way in which each task is asked.
ENDPOINTS = {
    "classification": "classify",
    "regression": "classify",
    "multiple_choice": "classify",
    "token_classification": "tag",
    "extractive_qa": "answer",
}


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Predictions as `run.py predict` writes them, of examples without labels.

    Attributes:
      run: of a task of `ENDPOINTS`.
    """

    run: Restored

    program: ClassVar[str] = "predict"
    size: ClassVar[int] = 8

    def compute(self, params: Params, rows: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """See `lm.serving.row_queue.Compute`."""
        found: Mapping[str, jax.Array] = self.run.program.predict(params, rows)
        return found

    def example_row(self) -> Arrays:
        """A row, by which the program is compiled."""
        task, _, layout = self.run.task_layout
        return task.abstract_row(layout)

    def examples(self, inputs: Sequence[Input]) -> tuple[list[Example], Sequence[Arrays]]:
        """The examples, each of which knows which of all the rows are its own.

        Raises:
          UserError: an input lacks a column, or is none of the task.
        """
        task, labels, layout = self.run.task_layout
        examples = []
        for number, given in enumerate(inputs, start=1):
            record = Record(f"input {number}", self._columns(given, number))
            example = task.unlabelled_example(record, labels)
            if task.num_choices(example) > layout.choices:
                raise UserError(
                    f"input {number} has {task.num_choices(example)} choices, but the run has "
                    f"learned to choose among {layout.choices} at most"
                )
            examples.append(example)
        rows = list(rows_of(task, examples, self.run.tokenizer, layout, labels))
        return examples, rows

    def prediction(self, example: Example, outputs: Sequence[Arrays]) -> Prediction:
        """The prediction for an example, given the outputs of its rows."""
        task, labels, _ = self.run.task_layout
        found = task.predict(example, outputs, labels)
        found = {k: v for k, v in found.items() if k not in task.label_dependent}
        if "log_probs" in outputs[0] and self.run.config.task.name == "classification":
            odds = np.exp(outputs[0]["log_probs"][0]).tolist()
            found["probabilities"] = dict(zip(labels, odds, strict=True))
        return found

    def _columns(self, given: Input, number: int) -> dict[str, Any]:
        """An input as a record's columns."""
        columns = tuple(self.run.config.task.text)
        if isinstance(given, Mapping):
            return dict(given)
        if self.run.config.task.name == "token_classification":
            return {columns[0]: given.split() if isinstance(given, str) else list(given)}
        texts = [given] if isinstance(given, str) else list(given)
        if len(texts) != len(columns):
            raise UserError(
                f"input {number} has {len(texts)} texts, but the run reads {len(columns)}: "
                f"{', '.join(columns)}"
            )
        return dict(zip(columns, texts, strict=True))
