"""What is said of every word of a sentence? A tag, such as B-PER. The first piece of each word
carries it; a sentence that is too long goes on in further rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

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
    number_of,
)


class Tagging(Task):
    """A tag for each word, of entities in IOB2 or BIOES, or of any other kind.

    Where two words were separated by `separator`, pieces of the second begin with it, so that
    tokenizers that mark word beginnings see them. `pooling` is not used.
    """

    measures = metrics.TAGGING
    columns = (1, 1)
    from_label = ("label",)

    @property
    def readout(self) -> str:
        """The first piece of every word."""
        return "places"

    def example(self, record: Record) -> Example:
        """See `Task`."""
        words, tags = self.column(record, self.text[0]), self.given_label(record)
        for column, values in ((self.text[0], words), (self.label, tags)):
            if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                raise UserError(f"{record.place}: column {column!r} is no list of words")
        if len(words) != len(tags) or not words:
            raise UserError(
                f"{record.place} has {len(words)} words and {len(tags)} tags; give each word one"
            )
        if not all(tags):
            raise UserError(f"{record.place}: word {tags.index('') + 1} has no tag; use O for none")
        return {"place": record.place, "words": words, "label": tags}

    def stand_in(self, record: Record, labels: Labels) -> list[str]:
        """A tag for each word."""
        words = self.column(record, self.text[0])
        return [labels[0]] * len(words) if isinstance(words, list) else [labels[0]]

    def known_labels(self, example: Example) -> Sequence[str]:
        """See `Task`."""
        return example["label"]

    def labels_of(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """O first, then the others in order; where there is B-X, also I-X, and E-X with S-X."""
        if self.labels:
            return self.labels
        found = {tag for example in examples for tag in example["label"]}
        if len(found) == 1:
            raise UserError(
                f"every word of the training examples has the tag {next(iter(found))!r}; a tagger "
                "needs examples of two or more"
            )
        marks = "BIES" if any(tag.startswith(("E-", "S-")) for tag in found) else "BI"
        types = {tag[2:] for tag in found if tag[:2] in ("B-", "I-", "E-", "S-")}
        found |= {f"{mark}-{kind}" for kind in types for mark in marks}
        return tuple(sorted(found, key=lambda tag: (tag != "O", tag[2:], tag)))

    def texts(self, example: Example) -> list[str]:
        """Every word, with what separates it from the one before."""
        first, *others = example["words"]
        return [first, *(self.separator + word for word in others)]

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """Consecutive rows of whole words; only a word longer than a row loses its last pieces.

        A word without pieces, such as a control character, is stood for by `end`.
        """
        numbers = [number_of(tag, labels, example) for tag in example["label"]]
        room = layout.length - 2
        pieces = [each.ids[:room] for each in encoded]
        pieces = [ids if len(ids) else np.array([layout.end], np.int32) for ids in pieces]
        rows, begin = [], 0
        while begin < len(pieces):
            end, used = begin, 0
            while end < len(pieces) and used + len(pieces[end]) <= room:
                used += len(pieces[end])
                end += 1
            rows.append(self._row(pieces[begin:end], numbers[begin:end], layout))
            begin = end
        return rows

    def _row(self, pieces: Sequence[np.ndarray], numbers: Sequence[int], layout: Layout) -> Row:
        sizes = [len(ids) for ids in pieces]
        row = layout.joined([np.concatenate(pieces)])
        return row | {
            "places": layout.padded(np.cumsum([1, *sizes[:-1]]), 0),
            "targets": layout.padded(numbers, 0),
            "weights": layout.padded(np.ones(len(sizes), int), 0).astype(np.float32),
        }

    def abstract(self, layout: Layout) -> Row:
        """See `Task`."""
        return self._row([np.zeros(1, np.int32)], [0], layout)

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """The tags of all words; confidence is the least of theirs."""
        said, confidence = [], []
        for output in outputs:
            words = int(np.sum(output["weights"]))
            log_probs = output["log_probs"][:words]
            best = output.get("best", np.argmax(output["log_probs"], axis=-1))[:words]
            said += [labels[i] for i in best]
            confidence += np.exp(log_probs[np.arange(words), best]).tolist()
        return {
            "words": example["words"],
            "label": example["label"],
            "predicted": said,
            "confidence": min(confidence),
        }

    def told(self, prediction: Prediction) -> str:
        """The words whose tags are wrong, with these."""
        tags = (prediction[name] for name in ("words", "predicted", "label"))
        rows = [row for row in zip(*tags, strict=True) if row[1] != row[2]]
        wrong = "; ".join(f"{word}: {said}, not {true}" for word, said, true in rows)
        return f"{wrong} (confidence {prediction['confidence']:.3f})"

    def evidence(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """Of every sentence, counts of entities and words; see `metrics.entity_counts`."""
        return np.array([metrics.entity_counts(p["label"], p["predicted"]) for p in predictions])

    def shown(self, example: Example) -> str:
        """The sentence."""
        return self.separator.join(example["words"])

    def pairs(self, predictions: Predictions) -> list[tuple[Any, Any]]:
        """The tags of every word."""
        both = (zip(p["label"], p["predicted"], strict=True) for p in predictions)
        return [pair for each in both for pair in each]

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """The table of seqeval: precision, recall and F1 by type."""
        truth = [p["label"] for p in predictions]
        return metrics.entity_report(truth, [p["predicted"] for p in predictions])
