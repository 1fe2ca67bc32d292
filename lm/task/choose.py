"""Which of several texts fits? Multiple choice: each is read beside the question, and the model
points at one.
"""

import re
from collections.abc import Sequence

import numpy as np

from lm.data import Encoded
from lm.errors import UserError
from lm.task import metrics
from lm.task.encode import Layout, Row
from lm.task.read import Record
from lm.task.task import (
    Example,
    Labels,
    Numbers,
    Outputs,
    Prediction,
    Predictions,
    Task,
    Texts,
    likeliest,
)


class Choice(Task):
    """One of two or more choices, as in SWAG or RACE.

    `choices` is one column that holds a list, or several columns of a text each. The label is the
    number of the right one, counted from 0, or its text. Examples may have fewer choices than
    others.
    """

    measures = metrics.CLASSIFICATION
    lower = ("nats_per_label",)

    @property
    def readout(self) -> str:
        """One of C texts."""
        return "choice"

    def example(self, record: Record) -> Example:
        """See `Task`."""
        choices = [self.column(record, name) for name in self.choices]
        choices = choices[0] if len(choices) == 1 and isinstance(choices[0], list) else choices
        if len(choices) < 2 or not all(isinstance(each, str) for each in choices):
            raise UserError(
                f"{record.place} has the choices {choices!r:.60}; give two or more texts, and name "
                "their columns in config.task.choices"
            )
        given = self.given_label(record)
        label = str(given)
        # A number is one even where a choice reads like it.
        if label in choices and not isinstance(given, int):
            number = choices.index(label)
        else:
            number = int(label) if re.fullmatch("[0-9]+", label) else len(choices)
        if number >= len(choices):
            raise UserError(
                f"{record.place} has the label {label!r}, which is neither a choice nor a number "
                f"from 0 to {len(choices) - 1}"
            )
        question = " ".join(self.strings(record))
        return {"place": record.place, "question": question, "choices": choices, "label": number}

    def choices_of(self, example: Example) -> int:
        """See `Task`."""
        return len(example["choices"])

    def labels_of(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The numbers of the choices."""
        return tuple(str(i) for i in range(max(map(self.choices_of, examples))))

    def outcomes(self, labels: Labels, layout: Layout) -> int:
        """C."""
        return layout.choices

    def texts(self, example: Example) -> list[str]:
        """The question, and every choice."""
        return [example["question"], *example["choices"]]

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """One row of [C, L]; choices that an example does not have are padding."""
        question, *choices = (each.ids for each in encoded)
        texts = [layout.joined([question, choice]) for choice in choices]
        last = [int(text["segments"].sum()) - 1 for text in texts]
        row = {name: np.stack([text[name] for text in texts]) for name in texts[0]}
        missing = layout.choices - len(choices)
        row = {name: np.pad(array, ((0, missing), (0, 0))) for name, array in row.items()}
        if self.pooling != "mean":
            places = last if self.pooling == "last" else [0] * len(last)
            row["places"] = np.pad(places, (0, missing))[:, None].astype(np.int32)
        target = np.array([example["label"]], np.int32)
        return [row | {"targets": target, "weights": np.ones(1, np.float32)}]

    def abstract(self, layout: Layout) -> Row:
        """See `Task`."""
        nothing = Encoded(np.zeros(1, np.int32), np.zeros(2, np.int32))
        return self.rows({"label": 0}, [nothing] * (layout.choices + 1), layout, {})[0]

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """The number of a choice."""
        best, known = likeliest(outputs[0])
        return {"label": str(example["label"]), "predicted": str(best), **known}

    def evidence(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """The right choice, the predicted one, and nats, [N, 3]."""
        return np.array([[int(p["label"]), int(p["predicted"]), p["nats"]] for p in predictions])

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """How often a guess would be right."""
        return f"{len(labels)} choices; a guess is right {1 / len(labels):.4f} of the time\n"
