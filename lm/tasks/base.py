"""The contract of tasks: how a record becomes an example, an example rows of tokens and targets,
and a model's outputs predictions and scores.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np

from lm.config import Key
from lm.data import Encoded, RowSource, Tokenizer
from lm.data.chat_template import TEMPLATES
from lm.errors import UserError
from lm.tasks.labels import is_missing
from lm.tasks.layout import Layout, Row
from lm.tasks.metrics import Metric
from lm.tasks.packing import share_rows
from lm.tasks.records import Record, no_column

Example = dict[str, Any]  # plain values, as JSON has them; "place" says where it came from
Texts = Sequence[Encoded]  # what `texts` of an example became
Labels = Sequence[str]  # in the order of their numbers
Numbers = Mapping[str, int]  # label -> number
Outputs = Mapping[str, np.ndarray]  # of one row: what `Transformer.predictions` gives
Prediction = dict[str, Any]  # plain values, as JSON has them
Predictions = Sequence[Prediction]


@dataclasses.dataclass(frozen=True)
class Task:
    """The contract of all tasks; the attributes are the keys of config.task.

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
      max_new_tokens: of a text that an evaluation generates; 0: it generates none.
      metric: what tables rank by and early stopping watches, of `metrics`; "": the first.

    Facts:
      measures: metrics by name, functions of (inputs [N, ...], number of labels), the main one
        first.
      lower_is_better: those of them of which less is better.
      real_targets: its targets are real numbers and not labels.
      predicts_tokens: the head chooses among tokens, as a language model's does.
      packable: its rows can be shared by `lm.tasks.packing.share_rows`.
      confidence_of: what its confidence is the probability of, in words.
      num_text_columns: the least and the largest number of columns in `text`.
      label_dependent: the keys of a prediction that need its label.
    """

    text: Annotated[tuple[str, ...], Key("task.text")]
    label: Annotated[str, Key("task.label")]
    choices: Annotated[tuple[str, ...], Key("task.choices")]
    labels: Annotated[tuple[str, ...], Key("task.labels")]
    choice_labels: Annotated[str, Key("task.choice_labels")]
    pooling: Annotated[str, Key("task.pooling")]
    tag_scheme: Annotated[str, Key("task.tag_scheme")]
    word_separator: Annotated[str, Key("task.word_separator")]
    max_answer_length: Annotated[int | None, Key("task.max_answer_length", at_least=1)]
    no_answer_threshold: Annotated[
        float, Key("task.no_answer_threshold", above=-math.inf, below=math.inf)
    ]
    doc_stride: Annotated[int, Key("task.doc_stride", at_least=0)]
    template: Annotated[str, Key("task.template", one_of=("", *TEMPLATES))]
    packing: Annotated[bool, Key("task.packing")]
    max_new_tokens: Annotated[int, Key("task.max_new_tokens", at_least=0)]
    metric: Annotated[str, Key("task.metric")]

    metrics: ClassVar[Mapping[str, Metric]]
    confidence_of: ClassVar[str] = "the prediction"
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    real_targets: ClassVar[bool] = False
    predicts_tokens: ClassVar[bool] = False
    packable: ClassVar[bool] = False
    num_text_columns: ClassVar[tuple[int, float]] = (1, math.inf)
    label_dependent: ClassVar[tuple[str, ...]] = ("label", "nats")

    @property
    def shares_rows(self) -> bool:
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

    def infer_options(self, examples: Sequence[Example]) -> tuple[dict[str, Any], list[str]]:
        """What only all examples together tell: values of attributes that the config leaves open,
        and sentences about the data for the log. Examples whose meaning depends on it change.

        Raises:
          UserError: the examples allow of several meanings, or of none.
        """
        return {}, []

    def unlabelled_example(self, record: Record, labels: Labels) -> Example:
        """What is kept of a record without a label: it gets a placeholder, and what depends on it
        (`label_dependent`) is left out of its prediction.

        Raises:
          UserError: it lacks a column, or the task predicts nothing without a label.
        """
        placeholder = {self.label: self.placeholder_label(record, labels)}
        return self.example(record._replace(values={**record.values, **placeholder}))

    def placeholder_label(self, record: Record, labels: Labels) -> Any:
        """A label that a record could have, as its source would have it."""
        raise NotImplementedError

    def has_label(self, record: Record) -> bool:
        """Whether there is something in the record's column of labels."""
        return not is_missing(record.values.get(self.label))

    def known_labels(self, example: Example) -> Sequence[str]:
        """Those of an example's labels that must be among the task's; (): they are no fixed set."""
        return ()

    def with_labels(self, labels: Labels) -> "Task":
        """The task of a model that has learned these labels elsewhere, from no examples of ours."""
        return self

    def collect_labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """All labels, in the order of their numbers; () where labels are not a fixed set.

        Raises:
          UserError: there are fewer than two.
        """
        return ()

    def num_classes(self, labels: Labels, layout: Layout) -> int:
        """V, how many classes the head chooses among; 0: the tokens of the vocabulary."""
        return len(labels)

    def num_choices(self, example: Example) -> int:
        """C, from how many texts an example has to choose; 0: it is none of that kind."""
        return 0

    def texts(self, example: Example) -> list[str]:
        """What is to be tokenized of an example."""
        raise NotImplementedError

    def tokenize(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Texts]:
        """The tokenized `texts` of each example."""
        texts = [self.texts(example) for example in examples]
        found = iter(tokenizer.encode_batch([text for each in texts for text in each]))
        return [[next(found) for _ in each] for each in texts]

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """The rows of an example, one or more, given what `tokenize` has of it.

        Raises:
          UserError: its label is not one of `labels` (label -> number).
        """
        raise NotImplementedError

    def answer_length(self, row: Row) -> int:
        """Of a row that points at an answer, how many tokens that has."""
        return 0

    def answer_statistics(
        self, examples: Sequence[Example], sizes: Sequence[int]
    ) -> dict[str, int]:
        """What the manifest says of the answers of training, given `answer_length` of all rows."""
        return {}

    def with_answer_limit(self, answers: Mapping[str, int]) -> tuple["Task", list[str]]:
        """The task that knows what its manifest says of answers, and sentences for the log."""
        return self, []

    def pack(self, rows: Iterable[Row], layout: Layout) -> Iterator[Row]:
        """Rows of training that several examples share."""
        return share_rows(rows, layout)

    def abstract_row(self, layout: Layout) -> Row:
        """A row's arrays, with their shapes and types."""
        raise NotImplementedError

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """The model's prediction for an example, given the outputs of its rows: "predicted" and
        "label" as the source writes them, "confidence" from 0 to 1, and what `score` needs.
        """
        raise NotImplementedError

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """What `metrics` need to know of each prediction, [N, ...]."""
        raise NotImplementedError

    def score(self, predictions: Predictions, labels: Labels) -> dict[str, float]:
        """The task's metrics over all predictions."""
        inputs = self.metric_inputs(predictions, labels)
        return {name: float(f(inputs, len(labels))) for name, f in self.metrics.items()}

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """A text that says where the model is correct and where it is not."""
        raise NotImplementedError

    def display_text(self, example: Example) -> str:
        """The text of an example as reports show it."""
        return " | ".join(self.texts(example))

    def is_correct(self, prediction: Prediction) -> bool:
        """Whether a prediction is correct."""
        return prediction["predicted"] == prediction["label"]

    def describe(self, prediction: Prediction) -> str:
        """A prediction in a few words."""
        both = (prediction["predicted"], prediction["label"])
        shown = (f"{each:.4g}" if self.real_targets else each for each in both)
        text, confidence = "{}, not {}".format(*shown), prediction.get("confidence")
        return text if confidence is None else f"{text} (confidence {confidence:.3f})"

    def mistakes(self, predictions: Predictions) -> list[Prediction]:
        """Those that are wrong, the most confident first."""
        wrong = [p for p in predictions if not self.is_correct(p)]
        return sorted(wrong, key=lambda p: -p["confidence"])

    def label_pairs(self, predictions: Predictions) -> list[tuple[Any, Any]]:
        """The true label and the predicted one, for everything that had to be labelled."""
        return [(p["label"], p["predicted"]) for p in predictions]

    def confidences(self, predictions: Predictions) -> tuple[list[float], list[bool]]:
        """The confidence of everything that was predicted, and whether it is correct."""
        return [p["confidence"] for p in predictions], [self.is_correct(p) for p in predictions]

    @property
    def main_metric(self) -> str:
        """The metric that tables rank by."""
        return self.metric or next(iter(self.metrics))

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

    def read_label(self, record: Record) -> Any:
        """The label of a record; UserError where there is none."""
        value = self.column(record, self.label)
        if is_missing(value):
            raise UserError(
                f"{record.place} has no label in column {self.label!r}; fill it in or remove it"
            )
        return value

    def number_of(self, label: str, labels: Numbers, example: Example) -> int:
        """The number of a label; UserError where neither config nor training examples have it."""
        if label not in labels:
            raise UserError(
                f"{example['place']} has the label {label!r}, which is none of the known: "
                f"{', '.join(labels)[:80]}. Name all labels in config.task.labels, or mend that one"
            )
        return labels[label]

    def likeliest(self, outputs: Outputs) -> tuple[int, dict[str, float]]:
        """The number of the likeliest label of a row with one, its "confidence" and "nats"."""
        log_probs, nats = outputs["log_probs"][0], float(outputs["nats"][0])
        best = int(np.argmax(log_probs))
        return best, {"confidence": float(np.exp(log_probs[best])), "nats": nats}


class LabelledData(Protocol):
    """Examples whose predictions can be scored and reported."""

    @property
    def task(self) -> Task:
        """What they are for."""
        ...

    @property
    def labels(self) -> Labels:
        """All labels, in the order of their numbers."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Says what their "source" is."""
        ...


class LabelledRows(LabelledData, Protocol):
    """Examples on which a model is evaluated: of a `TaskData`, or of other files."""

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

    def rows(self, split: str) -> RowSource:
        """The rows of "validation"."""
        ...
