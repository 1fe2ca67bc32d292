"""Extractive question answering: the model points at the first and the last token of the answer in
a text, in windows that overlap where the text is long.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import Encoded
from lm.errors import UserError
from lm.tasks import metrics
from lm.tasks.base import Example, Labels, Numbers, Outputs, Prediction, Predictions, Task, Texts
from lm.tasks.layout import Layout, Row
from lm.tasks.records import Record

LONGEST = 30  # tokens of an answer, where those of training are no longer
CANDIDATES = 20  # likeliest starts, and ends, that are combined
NEVER = -1e6  # nats of what has no probability: differences of nats stay numbers


class ExtractiveQA(Task):
    """A question (the first column of `text`) and a context (the second), as in SQuAD.

    The label column holds {"text": [...], "answer_start": [...]}, in characters of the context;
    empty lists say that the context has no answer. A window that does not hold the whole answer
    points at its first token, as does a question without one.
    """

    metrics = metrics.EXTRACTIVE_QA
    num_text_columns = (2, 2)
    confidence_of = "the span (its start times its end)"
    label_dependent = ("label", "exact", "f1", "span_exact", "span_f1")

    @property
    def readout(self) -> str:
        """A start and an end."""
        return "span"

    def example(self, record: Record) -> Example:
        """See `Task`."""
        question, context = self.strings(record)
        answers, starts = self._answers(record)
        for answer, start in zip(answers, starts, strict=True):
            if not answer.strip() or context[start : start + len(answer)] != answer:
                raise UserError(
                    f"{record.place}: the answer {answer[:40]!r} does not stand in the context at "
                    f"character {start}; mend answer_start, or remove it"
                )
        return {
            "place": record.place,
            "question": question,
            "context": context,
            "label": answers,
            "starts": starts,
        }

    def placeholder_label(self, record: Record, labels: Labels) -> dict[str, Any]:
        """No answer."""
        return {"text": [], "answer_start": []}

    def _answers(self, record: Record) -> tuple[list[str], list[int]]:
        """The answers, and where each begins."""
        given = self.read_label(record)
        known: Any = given if isinstance(given, dict) else {}
        answers: Any = known.get("text")
        starts: Any = known.get("answer_start")
        texts = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
        places = isinstance(starts, list) and all(isinstance(n, int) and n >= 0 for n in starts)
        if not (texts and places and len(answers) == len(starts)):
            raise UserError(
                f'{record.place}: column {self.label!r} is not {{"text": [...], "answer_start": '
                "[...]}, texts and as many numbers of characters"
            )
        return answers, starts

    def num_classes(self, labels: Labels, layout: Layout) -> int:
        """The positions of a row."""
        return layout.length

    def texts(self, example: Example) -> list[str]:
        """Question, context."""
        return [example["question"], example["context"]]

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """A row for each window over the context; a question takes at most half of it."""
        before, between, after = map(len, layout.around(2))
        most = layout.length - before - between - after
        question, context = encoded[0].ids[: most // 2], encoded[1]
        room = most - len(question)
        if self.doc_stride >= room:
            raise UserError(
                f"{example['place']}: windows of {room} tokens cannot overlap by "
                f"config.task.doc_stride = {self.doc_stride}; use less, or a larger "
                "config.data.seq_len"
            )
        first, last = self._place(example, context)
        rows = []
        for begin in range(0, max(len(context.ids) - self.doc_stride, 1), room - self.doc_stride):
            window = context.ids[begin : begin + room]
            whole = begin <= first and last < begin + len(window)
            shift = before + len(question) + between - begin
            target = [first + shift, last + shift] if whole else [0, 0]
            spans = np.zeros((layout.length, 2), np.int32)
            places = slice(shift + begin, shift + begin + len(window))
            spans[places] = context.spans[begin : begin + len(window)]
            rows.append(self._row(question, window, target, spans, layout))
        return rows

    def _row(self, question: Any, window: Any, target: Any, spans: Any, layout: Layout) -> Row:
        target = {"targets": np.array(target, np.int32), "weights": np.ones(2, np.float32)}
        return layout.joined([question, window]) | target | {"spans": spans}

    def _place(self, example: Example, context: Encoded) -> tuple[int, int]:
        """The first and the last token of the first answer; (-1, -1) where it has none."""
        if not example["label"]:
            return -1, -1
        answer, start = example["label"][0], example["starts"][0]
        # A space behind the answer may be of the next word's token, one before it of another's.
        start += len(answer) - len(answer.lstrip())
        first_byte = len(example["context"][:start].encode())
        places = context.within(first_byte, first_byte + len(answer.strip().encode()))
        return (int(places[0]), int(places[-1])) if len(places) else (-1, -1)

    def answer_length(self, row: Row) -> int:
        """Tokens of the answer that a row points at; 0 where it points at none."""
        first, last = row["targets"]
        return int(last - first + 1) if row["spans"][first].any() else 0

    def answer_statistics(
        self, examples: Sequence[Example], sizes: Sequence[int]
    ) -> dict[str, int]:
        """See `Task`."""
        found = [max(sizes[slice(*each["rows"])], default=0) for each in examples if each["label"]]
        return {"longest": max(found, default=0), "lost": found.count(0), "number": len(found)}

    def with_answer_limit(self, answers: Mapping[str, int]) -> tuple[Task, list[str]]:
        """The longest answer is as long as that of training, and at least `LONGEST` tokens."""
        notes, longest = [], answers["longest"]
        if answers["lost"]:
            notes.append(
                f"{answers['lost']} of {answers['number']} training answers fit into no window, "
                "and teach that there is none; raise config.data.seq_len or config.task.doc_stride"
            )
        if self.max_answer_length is None:
            return dataclasses.replace(self, max_answer_length=max(longest, LONGEST)), notes
        if self.max_answer_length < longest:
            notes.append(
                f"config.task.max_answer_length = {self.max_answer_length}, but training has "
                f"answers of up to {longest} tokens, which can never be predicted; raise it"
            )
        return self, notes

    def abstract_row(self, layout: Layout) -> Row:
        """See `Task`; "spans" [L, 2] are the bytes of the context behind each token."""
        nothing = np.zeros(1, np.int32)
        return self._row(nothing, nothing, [0, 0], np.zeros((layout.length, 2), np.int32), layout)

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """The likeliest span of any window, or nothing where the window that points the least at
        none does so likelier, by more than `no_answer_threshold` nats.

        "span" is that span in any case, and "no_answer" the difference of nats. Confidence is the
        product of the probabilities of start and end.
        """
        longest = self.max_answer_length or LONGEST
        context = example["context"].encode()
        best, span, none = -np.inf, "", np.inf
        for output in outputs:
            log_start, log_end = output["log_probs"].astype(np.float64)
            spans = output["spans"]
            none = min(none, log_start[0] + log_end[0])
            starts, ends = (np.argsort(-each)[:CANDIDATES] for each in (log_start, log_end))
            for start in starts:
                for end in ends:
                    if not (0 <= end - start < longest and spans[start, 1] and spans[end, 1]):
                        continue
                    score = log_start[start] + log_end[end]
                    if score > best:
                        best = score
                        span = context[spans[start, 0] : spans[end, 1]].decode("utf-8", "ignore")
        best, none = max(best, NEVER), max(none, NEVER)
        span, difference = span.strip(), float(none - best)
        predicted = "" if difference > self.no_answer_threshold else span
        exact, f1 = metrics.answer_scores(predicted, example["label"])
        span_exact, span_f1 = metrics.answer_scores(span, example["label"])
        return {
            "label": example["label"],
            "predicted": predicted,
            "confidence": float(np.exp(min(best if predicted else none, 0.0))),
            "exact": exact,
            "f1": f1,
            "span": span,
            "span_exact": span_exact,
            "span_f1": span_f1,
            "no_answer": difference,
        }

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """Exact match and F1 of the prediction, and of the span; by how many nats no answer is
        likelier than the span; and whether there is none: [N, 6].
        """
        names = ("exact", "f1", "span_exact", "span_f1", "no_answer")
        return np.array([[*(p[name] for name in names), not p["label"]] for p in predictions])

    def mistakes(self, predictions: Predictions) -> list[Prediction]:
        """Those that lack or add a word, the least alike first; then the most confident."""
        wrong = [p for p in predictions if p["f1"] < 1]
        return sorted(wrong, key=lambda p: (p["f1"], -p["confidence"]))

    def is_correct(self, prediction: Prediction) -> bool:
        """Whether it is one of the answers."""
        return prediction["exact"] == 1.0

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """How many questions have an answer, and how many were given one; and the thresholds that
        would have been the best.
        """
        evidence = self.metric_inputs(predictions, labels)
        answerable = evidence[:, 5] == 0
        answered = sum(bool(p["predicted"]) for p in predictions)
        lines = [
            f"{answerable.sum()} of {len(predictions)} have an answer; {answered} were given one"
        ]
        for name, kind in (("with", answerable), ("without", ~answerable)):
            if kind.any():
                exact, f1 = evidence[kind, :2].mean(axis=0)
                lines.append(f"those {name} an answer: exact match {exact:.4f}, F1 {f1:.4f}")
        for name, column in (("exact match", 2), ("F1", 3)):
            best, threshold = metrics.best_threshold(evidence, column)
            lines.append(
                f"best {name} {best:.4f}, with config.task.no_answer_threshold={threshold:.6g}"
            )
        return "\n".join(lines) + "\n"
