"""Classification and regression: a class, such as a sentiment, or a number, such as a similarity,
for a text or a pair of texts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.data import Encoded
from lm.errors import UserError
from lm.tasks import metrics
from lm.tasks.base import Example, Labels, Numbers, Outputs, Prediction, Predictions, Task, Texts
from lm.tasks.labels import NO_VALUE, class_name, ordered, same_but_for_case, truth_and_numbers
from lm.tasks.layout import Layout, Row
from lm.tasks.records import Record

POOLERS = ("pooler_tanh", "pooler_relu", "pooler_gelu")  # layers of `lm.model.pooling`
POOLINGS = ("first", "last", "mean", *POOLERS)


class _WholeText(Task):
    """One target for one or two texts."""

    num_text_columns = (1, 2)
    packable = True

    @property
    def readout(self) -> str:
        """See `Task`."""
        return self.pooling if self.pooling in ("mean", *POOLERS) else "target_positions"

    def texts(self, example: Example) -> list[str]:
        """See `Task`."""
        return example["texts"]

    def text_row(self, encoded: Sequence[Any], layout: Layout, target: Any) -> Row:
        """The row of texts with one target, the first of T."""
        row = layout.joined([each.ids for each in encoded])
        place = int(row["segments"].sum()) - 1 if self.pooling == "last" else 0
        others, kind = (0, layout.texts - 1), np.float32 if self.real_targets else np.int32
        return row | {
            "target_positions": np.pad([place], others).astype(np.int32),
            "targets": np.pad([target], others).astype(kind),
            "weights": np.pad(np.ones(1, np.float32), others),
        }

    def abstract_row(self, layout: Layout) -> Row:
        """See `Task`."""
        nothing = Encoded(np.zeros(0, np.int32), np.zeros(1, np.int32))
        return self.text_row([nothing] * len(self.text), layout, 0)


class Classification(_WholeText):
    """One of a set of classes."""

    metrics = metrics.CLASSIFICATION
    lower_is_better = ("nats_per_label",)
    confidence_of = "the class"

    def example(self, record: Record) -> Example:
        """See `Task`; a class has one name, however the source writes it: see `class_name`."""
        texts, given = self.strings(record), self.read_label(record)
        if isinstance(given, (list, dict)):
            raise UserError(
                f"{record.place}: the label {given!r:.40} is no single class; give a text"
            )
        label = class_name(given)
        if label in NO_VALUE and label not in self.labels:
            raise UserError(
                f"{record.place} has the label {label!r}, as pandas writes an empty cell; remove "
                "it, or name all labels in config.task.labels where this is one"
            )
        return {"place": record.place, "texts": texts, "label": label}

    def infer_options(self, examples: Sequence[Example]) -> tuple[dict[str, Any], list[str]]:
        """Says which classes there are; see `Task`."""
        names = [example["label"] for example in examples]
        if not self.labels and (mixed := truth_and_numbers(names)):
            places = [examples[names.index(name)]["place"] for name in mixed]
            raise UserError(
                f"{places[0]} has the label {mixed[0]!r} and {places[1]} the label {mixed[1]!r}; "
                "write truth values one way, or name all labels in config.task.labels"
            )
        found = ordered(names)
        notes = [f"{len(found)} classes: {', '.join(found)[:200]}"]
        if alike := same_but_for_case(found):
            notes.append("{!r} and {!r} differ in case alone and are two classes".format(*alike))
        return {}, notes

    def placeholder_label(self, record: Record, labels: Labels) -> str:
        """See `Task`."""
        return labels[0]

    def known_labels(self, example: Example) -> Sequence[str]:
        """See `Task`."""
        return [example["label"]]

    def collect_labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The labels in alphabetical order, numbers in theirs."""
        found = {example["label"] for example in examples}
        if len(found) == 1 and not self.labels:
            raise UserError(
                f"every training example has the label {next(iter(found))!r}; a classifier needs "
                "examples of two or more"
            )
        return tuple(map(class_name, self.labels)) or ordered(found)

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """See `Task`."""
        return [self.text_row(encoded, layout, self.number_of(example["label"], labels, example))]

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """See `Task`."""
        best, known = self.likeliest(outputs[0])
        return {"label": example["label"], "predicted": labels[best], **known}

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """The true class, the predicted one, and nats, [N, 3]."""
        number = {label: i for i, label in enumerate(labels)}
        rows = [[number[p["label"]], number[p["predicted"]], p["nats"]] for p in predictions]
        return np.array(rows)

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """scikit-learn's table of precision, recall and F1 by class."""
        return metrics.classification_report(self.metric_inputs(predictions, labels), labels)


class Regression(_WholeText):
    """A number; the head `squared` minimises the squared error."""

    metrics = metrics.REGRESSION
    lower_is_better = ("mean_squared_error",)
    real_targets = True
    label_dependent = ("label",)

    def placeholder_label(self, record: Record, labels: Labels) -> float:
        """See `Task`."""
        return 0.0

    def example(self, record: Record) -> Example:
        """See `Task`."""
        given = self.read_label(record)
        try:
            label = float(given)
        except (TypeError, ValueError):
            label = float("nan")
        if not np.isfinite(label):
            raise UserError(
                f"{record.place}: the label {given!r} is no finite number; mend or remove it"
            )
        return {"place": record.place, "texts": self.strings(record), "label": label}

    def num_classes(self, labels: Labels, layout: Layout) -> int:
        """One number."""
        return 1

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """See `Task`."""
        return [self.text_row(encoded, layout, example["label"])]

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """See `Task`; a number has no confidence."""
        return {"label": example["label"], "predicted": float(outputs[0]["values"][0])}

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """The true number and the predicted one, [N, 2]."""
        return np.array([[p["label"], p["predicted"]] for p in predictions])

    def mistakes(self, predictions: Predictions) -> list[Prediction]:
        """The largest errors first."""
        return sorted(predictions, key=lambda p: -abs(p["predicted"] - p["label"]))

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """How large the errors are."""
        truth, predicted = self.metric_inputs(predictions, labels).T
        middle, most, largest = np.quantile(np.abs(predicted - truth), [0.5, 0.9, 1.0])
        return (
            f"absolute error: median {middle:.3f}, nine in ten below {most:.3f}, largest "
            f"{largest:.3f}\nlabels: from {truth.min():.3f} to {truth.max():.3f}, standard "
            f"deviation {truth.std():.3f}\n"
        )
