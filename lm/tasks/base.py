"""What is a task? What every row of `TASKS` says of itself: how a record becomes an example, an
example rows of numbers, and a model's outputs predictions and scores.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from lm.data import Encoded, Tokenizer
from lm.errors import UserError
from lm.tasks.labels import is_missing
from lm.tasks.layout import Layout, Row
from lm.tasks.packing import share_rows
from lm.tasks.records import Record, no_column

Example = dict[str, Any]  # plain values, as JSON has them; "place" says where it came from
Measure = Callable[[np.ndarray, int], float]
Texts = Sequence[Encoded]  # what `texts` of an example became
Labels = Sequence[str]  # in the order of their numbers
Numbers = Mapping[str, int]  # label -> number
Outputs = Mapping[str, np.ndarray]  # of one row: what `Transformer.predictions` gives
Prediction = dict[str, Any]  # plain values, as JSON has them
Predictions = Sequence[Prediction]


@dataclasses.dataclass(frozen=True)
class Task:
    """The contract of all tasks; the attributes are the knobs of config.task.

    Attributes:
      text, label, choices: columns of the records.
      labels: in order; (): those of the training examples.
      choice_labels: how a choice's label is written: a name of
        `lm.tasks.multiple_choice.READINGS`; "": as all examples allow.
      pooling: which hidden state stands for a text: a name of `POOLINGS`.
      tag_scheme: by which tags mark entities, a name of `lm.tasks.tag_scheme.MARKS`; "": as they
        tell.
      word_separator: what stood between the words of a list of words.
      max_answer_length: tokens of an answer that is pointed at; None: as training's.
      no_answer_threshold: by how many nats no answer must be likelier than the best to be said.
      doc_stride: tokens by which windows over a long text overlap.
      template: how a conversation is written out: a name of `lm.data.chat_template.TEMPLATES`.
      packing: short texts share rows of training, where `packable`.
      max_new_tokens: of what an evaluation writes; 0: it writes nothing.
      metric: what tables rank by and early stopping watches, of `measures`; "": the first.

    Facts:
      measures: metrics by name, functions of (evidence [N, ...], number of labels), the main one
        first.
      lower: those of them of which less is better.
      real: its targets are numbers and not labels.
      words: the head chooses among words, as a language model's does.
      packable: its rows can be shared by `lm.tasks.packing.share_rows`.
      confident: what its confidence is the probability of, in words.
      columns: the least and the largest number of columns in `text`.
      from_label: the keys of a prediction that need its label.
    """

    text: tuple[str, ...]
    label: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    choice_labels: str
    pooling: str
    tag_scheme: str
    word_separator: str
    max_answer_length: int | None
    no_answer_threshold: float
    doc_stride: int
    template: str
    packing: bool
    max_new_tokens: int
    metric: str

    measures: ClassVar[Mapping[str, Measure]]
    confident: ClassVar[str] = "the prediction"
    lower: ClassVar[tuple[str, ...]] = ()
    real: ClassVar[bool] = False
    words: ClassVar[bool] = False
    packable: ClassVar[bool] = False
    columns: ClassVar[tuple[int, float]] = (1, math.inf)
    from_label: ClassVar[tuple[str, ...]] = ("label", "nats")

    @property
    def packs(self) -> bool:
        """Whether several examples share a row of training."""
        return self.packing

    @property
    def readout(self) -> str:
        """A name of `lm.model.pooling.READOUTS`."""
        raise NotImplementedError

    def example(self, record: Record) -> Example:
        """What is kept of a record.

        Raises:
          UserError: it lacks a column or a label, or its label cannot be one.
        """
        raise NotImplementedError

    def settle(self, examples: Sequence[Example]) -> tuple[dict[str, Any], list[str]]:
        """What only all examples together tell: values of attributes that the config leaves open,
        and sentences about the data for the log. Examples whose meaning depends on it change.

        Raises:
          UserError: the examples allow of several meanings, or of none.
        """
        return {}, []

    def unlabelled(self, record: Record, labels: Labels) -> Example:
        """What is kept of a record without a label: some label stands in its place, and nothing
        that depends on it (`from_label`) is told.

        Raises:
          UserError: it lacks a column, or the task predicts nothing without a label.
        """
        stand_in = {self.label: self.stand_in(record, labels)}
        return self.example(record._replace(values={**record.values, **stand_in}))

    def stand_in(self, record: Record, labels: Labels) -> Any:
        """A label that a record could have, as its source would have it."""
        raise NotImplementedError

    def has_label(self, record: Record) -> bool:
        """Whether there is something in the record's column of labels."""
        return not is_missing(record.values.get(self.label))

    def known_labels(self, example: Example) -> Sequence[str]:
        """Those of an example's labels that must be among the task's; (): they are no fixed set."""
        return ()

    def labelled_by(self, labels: Labels) -> "Task":
        """The task of a model that has learned these labels elsewhere, from no examples of ours."""
        return self

    def labels_of(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """All labels, in the order of their numbers; () where labels are not a fixed set.

        Raises:
          UserError: there are fewer than two.
        """
        return ()

    def num_classes(self, labels: Labels, layout: Layout) -> int:
        """V, how many things the head chooses among; 0: words."""
        return len(labels)

    def choices_of(self, example: Example) -> int:
        """C, from how many texts an example has to choose; 0: it is none of that kind."""
        return 0

    def texts(self, example: Example) -> list[str]:
        """What is to be tokenized of an example."""
        raise NotImplementedError

    def encoded(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Texts]:
        """The tokenized `texts` of each example."""
        texts = [self.texts(example) for example in examples]
        found = iter(tokenizer.encode_batch([text for each in texts for text in each]))
        return [[next(found) for _ in each] for each in texts]

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """The rows of an example, one or more, given what `encoded` has of it.

        Raises:
          UserError: its label is not one of `labels` (label -> number).
        """
        raise NotImplementedError

    def answer_size(self, row: Row) -> int:
        """Of a row that points at an answer, how many tokens that has."""
        return 0

    def answers(self, examples: Sequence[Example], sizes: Sequence[int]) -> dict[str, int]:
        """What the manifest says of the answers of training, given `answer_size` of all rows."""
        return {}

    def bounded(self, answers: Mapping[str, int]) -> tuple["Task", list[str]]:
        """The task that knows what its manifest says of answers, and sentences for the log."""
        return self, []

    def packed(self, rows: Iterable[Row], layout: Layout) -> Iterator[Row]:
        """Rows of training that several examples share."""
        return share_rows(rows, layout)

    def abstract(self, layout: Layout) -> Row:
        """A row's arrays, with their shapes and types."""
        raise NotImplementedError

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """What the model says of an example, given the outputs of its rows: "predicted" and "label"
        in the words of the source, "confidence" from 0 to 1, and what `score` needs.
        """
        raise NotImplementedError

    def evidence(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """What `measures` need to know of each prediction, [N, ...]."""
        raise NotImplementedError

    def score(self, predictions: Predictions, labels: Labels) -> dict[str, float]:
        """The task's metrics over all predictions."""
        evidence = self.evidence(predictions, labels)
        return {name: float(f(evidence, len(labels))) for name, f in self.measures.items()}

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """A page of text that says where the model is right and wrong."""
        raise NotImplementedError

    def shown(self, example: Example) -> str:
        """The text of an example, for a reader."""
        return " | ".join(self.texts(example))

    def right(self, prediction: Prediction) -> bool:
        """Whether a prediction is what it should be."""
        return prediction["predicted"] == prediction["label"]

    def told(self, prediction: Prediction) -> str:
        """A prediction in a few words."""
        both = (prediction["predicted"], prediction["label"])
        said = "{}, not {}".format(*(f"{each:.4g}" if self.real else each for each in both))
        sure = prediction.get("confidence")
        return said if sure is None else f"{said} (confidence {sure:.3f})"

    def mistakes(self, predictions: Predictions) -> list[Prediction]:
        """Those that are wrong, the most confident first."""
        wrong = [p for p in predictions if not self.right(p)]
        return sorted(wrong, key=lambda p: -p["confidence"])

    def pairs(self, predictions: Predictions) -> list[tuple[Any, Any]]:
        """The true label and the predicted one, for everything that had to be labelled."""
        return [(p["label"], p["predicted"]) for p in predictions]

    def judged(self, predictions: Predictions) -> tuple[list[float], list[bool]]:
        """The confidence of everything that had to be predicted, and whether it is right."""
        return [p["confidence"] for p in predictions], [self.right(p) for p in predictions]

    @property
    def main(self) -> str:
        """The metric that ranks."""
        return self.metric or next(iter(self.measures))

    def column(self, record: Record, name: str) -> Any:
        """A record's value of a column; UserError where it has none."""
        if name not in record.values:
            remedy = "set config.task.text, .label and .columns"
            raise UserError(no_column(record.place, name, [*record.values], remedy))
        return record.values[name]

    def string(self, record: Record, name: str) -> str:
        """The same, which must be a text."""
        value = self.column(record, name)
        if not isinstance(value, str):
            raise UserError(f"{record.place}: column {name!r} is {value!r:.40}, and no text")
        return value

    def strings(self, record: Record) -> list[str]:
        """The texts of a record, one for each column of config.task.text."""
        return [self.string(record, name) for name in self.text]

    def given_label(self, record: Record) -> Any:
        """The label of a record; UserError where there is none."""
        value = self.column(record, self.label)
        if is_missing(value):
            raise UserError(
                f"{record.place} has no label in column {self.label!r}; fill it in or remove it"
            )
        return value


class Judged(Protocol):
    """Examples whose predictions can be reported."""

    @property
    def task(self) -> Task:
        """What judges them."""
        ...

    @property
    def labels(self) -> Labels:
        """All labels, in the order of their numbers."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Says what their "source" is."""
        ...


class Asked(Judged, Protocol):
    """Examples about which a model is asked."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the rows."""
        ...

    @property
    def layout(self) -> Layout:
        """What a row is made of."""
        ...

    def examples(self) -> list[Example]:
        """The held-out examples; "rows" is the first and the one after the last of their rows."""
        ...

    def rows(self, split: str) -> Any:
        """The rows of "validation": a sequence."""
        ...


def number_of(label: str, labels: Numbers, example: Example) -> int:
    """The number of a label; UserError where neither config nor training examples have it."""
    if label not in labels:
        raise UserError(
            f"{example['place']} has the label {label!r}, which is none of the known: "
            f"{', '.join(labels)[:80]}. Name all labels in config.task.labels, or mend that one"
        )
    return labels[label]


def likeliest(outputs: Outputs) -> tuple[int, dict[str, float]]:
    """The number of the likeliest label of a row that has one, with its "confidence" and "nats"."""
    log_probs = outputs["log_probs"][0]
    best = int(np.argmax(log_probs))
    return best, {"confidence": float(np.exp(log_probs[best])), "nats": float(outputs["nats"][0])}
