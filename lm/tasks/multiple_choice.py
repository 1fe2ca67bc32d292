"""Multiple choice: each of several texts is read beside the question, and one is pointed at."""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import Encoded
from lm.errors import UserError
from lm.tasks import metrics
from lm.tasks.base import Example, Labels, Numbers, Outputs, Prediction, Predictions, Task, Texts
from lm.tasks.labels import class_name
from lm.tasks.layout import Layout, Row
from lm.tasks.records import Record


def _index(given: object, choices: Sequence[str]) -> int:
    label = class_name(given)
    return int(label) if re.fullmatch("[0-9]+", label) else -1


def _letter(given: object, choices: Sequence[str]) -> int:
    label = class_name(given).upper()
    return string.ascii_uppercase.find(label) if len(label) == 1 else -1


def _text(given: object, choices: Sequence[str]) -> int:
    label, names = class_name(given), [class_name(choice) for choice in choices]
    return names.index(label) if label in names else -1


# The number of the choice that a label means, from 0; out of range where it means none.
READINGS: Mapping[str, Callable[[Any, Sequence[str]], int]] = {
    "index": _index,
    "number": lambda given, choices: _index(given, choices) - 1,
    "letter": _letter,
    "text": _text,
    "typed": lambda given, choices: (_text if isinstance(given, str) else _index)(given, choices),
}
_UNASKED = ("index", "typed")  # what labels may be where config.task.choice_labels is ""


def _wanted(reading: str, count: int) -> str:
    """What a label is not that the reading knows none of so many choices for."""
    last = string.ascii_uppercase[: min(count, 26)][-1]
    return {
        "index": f"no number from 0 to {count - 1}",
        "number": f"no number from 1 to {count}",
        "letter": f"no letter from A to {last}",
        "text": "none of the choices",
    }.get(reading, f"neither a choice nor a number from 0 to {count - 1}")


class MultipleChoice(Task):
    """One of two or more choices, as in SWAG or RACE.

    `choices` is one column that holds a list, or several columns of a text each. The label is the
    number of the right one, counted from 0, or its text, one of these in all examples; further ways
    are named in `choice_labels`. Examples may have fewer choices than others.
    """

    metrics = metrics.CLASSIFICATION
    lower_is_better = ("nats_per_label",)
    confidence_of = "the choice"

    @property
    def readout(self) -> str:
        """One of C texts."""
        return "choice"

    def example(self, record: Record) -> Example:
        """See `Task`."""
        choices = self.items(record)
        given = self.read_label(record)
        names = [self.choice_labels] if self.choice_labels else _UNASKED
        meanings = {name: READINGS[name](given, choices) for name in names}
        meanings = {k: number for k, number in meanings.items() if 0 <= number < len(choices)}
        if not meanings:
            raise UserError(
                f"{record.place} has the label {given!r:.60}, which is "
                f"{_wanted(self.choice_labels, len(choices))}; mend it, or say in "
                f"config.task.choice_labels how labels are written: {', '.join(READINGS)}"
            )
        question = " ".join(self.strings(record))
        label = meanings[self.choice_labels] if self.choice_labels else meanings
        return {"place": record.place, "question": question, "choices": choices, "label": label}

    def items(self, record: Record) -> list[str]:
        """The texts to choose from; UserError where they are not two or more texts."""
        choices = [self.column(record, name) for name in self.choices]
        choices = choices[0] if len(choices) == 1 and isinstance(choices[0], list) else choices
        if len(choices) < 2 or not all(isinstance(each, str) for each in choices):
            raise UserError(
                f"{record.place} has the choices {choices!r:.60}; give two or more texts, and name "
                "their columns in config.task.choices"
            )
        return choices

    def infer_options(self, examples: Sequence[Example]) -> tuple[dict[str, Any], list[str]]:
        """Which of two readings suits the labels of all examples: numbers from 0, or texts of
        choices (beside which JSON's numbers count from 0). Refused where both do and differ.
        """
        if self.choice_labels or not examples:
            return {}, []
        suit = [name for name in _UNASKED if all(name in each["label"] for each in examples)]
        if not suit:
            alone = [[e["place"] for e in examples if [*e["label"]] == [name]] for name in _UNASKED]
            raise UserError(
                f"the label of {alone[0][0]} is a number, and that of {alone[1][0]} the text of a "
                "choice; write all labels one way"
            )
        for example in examples:
            if len({example["label"][name] for name in suit}) > 1:
                raise UserError(
                    f"the labels are numbers from 0 as well as texts of choices, which are not the "
                    f"same in {example['place']}; set config.task.choice_labels to index or text"
                )
        if suit[0] == "index" and len(examples) > 1 and all(e["label"]["index"] for e in examples):
            raise UserError(
                f"no label of {len(examples)} examples is 0: they may count from 0 or from 1; set "
                "config.task.choice_labels to index or number"
            )
        for example in examples:
            example["label"] = example["label"][suit[0]]
        form = {"index": "numbers that count from 0", "typed": "the texts of choices"}[suit[0]]
        return {"choice_labels": suit[0]}, [f"labels are read as {form}"]

    def placeholder_label(self, record: Record, labels: Labels) -> Any:
        """The first choice, as labels are written."""
        first = self.column(record, self.choices[0])
        text = first[0] if isinstance(first, list) and first else first
        return {"number": 1, "letter": "A", "text": text}.get(self.choice_labels, 0)

    def num_choices(self, example: Example) -> int:
        """See `Task`."""
        return len(example["choices"])

    def collect_labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The numbers of the choices."""
        return tuple(str(i) for i in range(max(map(self.num_choices, examples))))

    def num_classes(self, labels: Labels, layout: Layout) -> int:
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
            row["target_positions"] = np.pad(places, (0, missing))[:, None].astype(np.int32)
        target = np.array([example["label"]], np.int32)
        return [row | {"targets": target, "weights": np.ones(1, np.float32)}]

    def abstract_row(self, layout: Layout) -> Row:
        """See `Task`."""
        nothing = Encoded(np.zeros(1, np.int32), np.zeros(2, np.int32))
        return self.rows({"label": 0}, [nothing] * (layout.choices + 1), layout, {})[0]

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """The number of a choice."""
        best, known = self.likeliest(outputs[0])
        return {"label": str(example["label"]), "predicted": str(best), **known}

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """The right choice, the predicted one, and nats, [N, 3]."""
        return np.array([[int(p["label"]), int(p["predicted"]), p["nats"]] for p in predictions])

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """How often a guess would be right."""
        return f"{len(labels)} choices; a guess is right {1 / len(labels):.4f} of the time\n"
