"""Token classification: a tag, such as B-PER, for every word. A sentence that is too long goes on
in further rows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.data import Encoded, Tokenizer
from lm.errors import UserError
from lm.tasks import metrics
from lm.tasks.base import Example, Labels, Numbers, Outputs, Prediction, Predictions, Task, Texts
from lm.tasks.layout import Layout, Row
from lm.tasks.metrics import Metric
from lm.tasks.records import Record
from lm.tasks.tag_scheme import MARKS, entity_report, scheme_of


class TokenClassification(Task):
    """A tag for each word: of entities, in a scheme of `lm.tasks.tag_scheme`, or of any other kind,
    such as parts of speech, which are judged as a whole.

    Words are read as one text, with `word_separator` between them. `pooling` is not used.
    """

    num_text_columns = (1, 1)
    packable = True
    label_dependent = ("label",)
    confidence_of = "a word's tag"

    @property
    def metrics(self) -> dict[str, Metric]:  # pyright: ignore
        """Of entities and words; of words alone where tags mark no entities."""
        return metrics.WORD_TAGS if self.tag_scheme == "none" else metrics.TOKEN_CLASSIFICATION

    @property
    def readout(self) -> str:
        """A piece of every word."""
        return "target_positions"

    def example(self, record: Record) -> Example:
        """See `Task`."""
        words, tags = self.column(record, self.text[0]), self.read_label(record)
        for column, values in ((self.text[0], words), (self.label, tags)):
            if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                raise UserError(f"{record.place}: column {column!r} is no list of words")
        if len(words) != len(tags) or not words:
            raise UserError(
                f"{record.place} has {len(words)} words and {len(tags)} tags; give each word one"
            )
        tags = [tag.strip() for tag in tags]
        if not all(tags):
            raise UserError(f"{record.place}: word {tags.index('') + 1} has no tag; use O for none")
        return {"place": record.place, "words": words, "label": tags}

    def infer_options(self, examples: Sequence[Example]) -> tuple[dict[str, Any], list[str]]:
        """The scheme of all tags; see `Task`."""
        scheme = scheme_of([example["label"] for example in examples], self.tag_scheme)
        if scheme != "none":
            return {"tag_scheme": scheme}, [f"tags mark entities by the scheme {scheme}"]
        if self.metric not in ("", *metrics.WORD_TAGS):
            raise UserError(
                f"config.task.metric = {self.metric!r}, but the tags mark no entities: use "
                f"{', '.join(metrics.WORD_TAGS)}, or say their scheme in config.task.tag_scheme"
            )
        return {"tag_scheme": scheme}, ["tags mark no entities; each word's is judged as a whole"]

    def placeholder_label(self, record: Record, labels: Labels) -> list[str]:
        """A tag for each word."""
        words = self.column(record, self.text[0])
        return [labels[0]] * len(words) if isinstance(words, list) else [labels[0]]

    def known_labels(self, example: Example) -> Sequence[str]:
        """See `Task`."""
        return example["label"]

    def collect_labels(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """O first, then the others in order of types; of each type with all marks of the scheme."""
        if self.labels:
            return self.labels
        found = {tag for example in examples for tag in example["label"]}
        if len(found) == 1:
            raise UserError(
                f"every word of the training examples has the tag {next(iter(found))!r}; a tagger "
                "needs examples of two or more"
            )
        types = {tag[1:] for tag in found - {"O"}}  # with their hyphen
        found |= {f"{mark}{kind}" for kind in types for mark in MARKS[self.tag_scheme]}
        return tuple(sorted(found, key=lambda tag: (tag != "O", tag[2:], tag)))

    def texts(self, example: Example) -> list[str]:
        """The sentence, tokenized as it stands in a text."""
        return [self.display_text(example)]

    def tokenize(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Texts]:
        """See `Task`. A piece for the space that a tokenizer puts before a text is no word's."""
        return [[_unspaced(each, tokenizer)] for (each,) in super().tokenize(examples, tokenizer)]

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """Consecutive rows of whole words; only a word longer than a row loses its last pieces.

        An encoder tags a word at its first piece that holds some of it, a decoder at its last,
        where it has seen the word. A word without pieces, such as a control character, is tagged
        at the piece behind it, or where the row closes, or else at the row's last piece.
        """
        numbers = [self.number_of(tag, labels, example) for tag in example["label"]]
        (sentence,) = encoded
        pieces = self._pieces(example["words"], sentence)
        ends = np.maximum.accumulate(pieces[:, 1])
        room = layout.length - sum(map(len, layout.around(1)))
        rows, begin = [], 0
        while begin < len(pieces):
            start = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, start + room, side="right")))
            ids = sentence.ids[start : ends[end - 1]][:room]
            some = pieces[begin:end] - start
            places = some[:, 1] - 1 if layout.decoder else some[:, 0]
            # A word without pieces stands where the next piece, or what closes the row, does.
            most = np.where(some[:, 0] == some[:, 1], len(ids), len(ids) - 1)
            places = np.where(some[:, 0] == some[:, 1], some[:, 0], places)
            rows.append(self._row(ids, np.clip(places, 0, most), numbers[begin:end], layout))
            begin = end
        return rows

    def _pieces(self, words: Sequence[str], sentence: Encoded) -> np.ndarray:
        """The first piece of each word that holds some of it, and the one after its last."""
        found, byte = [], 0
        for word in words:
            after = byte + len(word.encode())
            held = sentence.within(byte, after)
            behind = int(np.searchsorted(sentence.spans[:, 1], after, side="right"))
            found.append((held[0], held[-1] + 1) if len(held) else (behind, behind))
            byte = after + len(self.word_separator.encode())
        return np.array(found)

    def _row(
        self, ids: np.ndarray, places: np.ndarray, numbers: Sequence[int], layout: Layout
    ) -> Row:
        before, row = len(layout.around(1)[0]), layout.joined([ids])
        # Where nothing closes the row, what is behind its last piece may be another text's.
        last = max(int(row["segments"].sum()) - 1, 0)
        return row | {
            "target_positions": layout.padded(np.minimum(places + before, last), 0),
            "targets": layout.padded(numbers, 0),
            "weights": layout.padded(np.ones(len(numbers), int), 0).astype(np.float32),
        }

    def abstract_row(self, layout: Layout) -> Row:
        """See `Task`."""
        return self._row(np.zeros(1, np.int32), np.zeros(1, int), [0], layout)

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """The tags of all words; "confidences" are theirs, and "confidence" the least of them."""
        predicted, confidence = [], []
        for output in outputs:
            words = int(np.sum(output["weights"]))
            log_probs = output["log_probs"][:words]
            best = output.get("best", np.argmax(output["log_probs"], axis=-1))[:words]
            predicted += [labels[i] for i in best]
            confidence += np.exp(log_probs[np.arange(words), best]).tolist()
        return {
            "words": example["words"],
            "label": example["label"],
            "predicted": predicted,
            "confidence": min(confidence),
            "confidences": confidence,
        }

    def describe(self, prediction: Prediction) -> str:
        """The words whose tags are wrong, with these."""
        tags = (prediction[name] for name in ("words", "predicted", "label"))
        rows = [row for row in zip(*tags, strict=True) if row[1] != row[2]]
        wrong = "; ".join(f"{word}: {predicted}, not {true}" for word, predicted, true in rows)
        return f"{wrong} (confidence {prediction['confidence']:.3f})"

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """Of every sentence, counts of entities and words; see `metrics.entity_counts`."""
        both = ((p["label"], p["predicted"]) for p in predictions)
        return np.array([metrics.entity_counts(*each, self.tag_scheme) for each in both])

    def with_labels(self, labels: Labels) -> Task:
        """See `Task`: the scheme that the labels tell."""
        return dataclasses.replace(self, tag_scheme=scheme_of([labels], self.tag_scheme))

    def display_text(self, example: Example) -> str:
        """The sentence."""
        return self.word_separator.join(example["words"])

    def label_pairs(self, predictions: Predictions) -> list[tuple[Any, Any]]:
        """The tags of every word."""
        both = (zip(p["label"], p["predicted"], strict=True) for p in predictions)
        return [pair for each in both for pair in each]

    def confidences(self, predictions: Predictions) -> tuple[list[float], list[bool]]:
        """Of every word."""
        confidences = [each for p in predictions for each in p["confidences"]]
        return confidences, [true == predicted for true, predicted in self.label_pairs(predictions)]

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """Precision, recall and F1 by type of entity, or by tag."""
        truth = [p["label"] for p in predictions]
        return entity_report(truth, [p["predicted"] for p in predictions], self.tag_scheme)


def _unspaced(sentence: Encoded, tokenizer: Tokenizer) -> Encoded:
    """The same, where the first piece holds nothing if it stands for a space that is not there."""
    spans = sentence.spans  # such a piece shares its character with the next
    if len(spans) < 2 or spans[1, 0] > 0 or tokenizer.decode(sentence.ids[:1]).strip():
        return sentence
    return sentence._replace(offsets=np.concatenate([[[0, 0]], spans[1:]]))
