"""Text generation tasks: one text from another (seq2seq), or the assistant's part of a conversation
(instruction). Only the answer's tokens count in the loss.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lm.data import ByteTokenizer, Encoded, Tokenizer
from lm.data.chat import Chat
from lm.data.chat_template import template_of
from lm.data.inline_special_tokens import without_marks
from lm.data.special_tokens import encoder_decoder_tokens
from lm.errors import UserError
from lm.tasks import metrics
from lm.tasks.base import Example, Labels, Numbers, Outputs, Prediction, Predictions, Task, Texts
from lm.tasks.bleu_rouge import OVERLAP, overlaps
from lm.tasks.layout import Layout, Row
from lm.tasks.metrics import Metric
from lm.tasks.packing import pack
from lm.tasks.records import Record

ROLES = ("system", "user", "assistant")


class TextGeneration(Task):
    """Next-token prediction in which only some tokens count; the head chooses among words."""

    metrics = metrics.TEXT_GENERATION
    lower_is_better = ("nats_per_token",)
    predicts_tokens = True
    label_dependent = ("label", "nats", "hits", "tokens")

    @property
    def readout(self) -> str:
        """All positions."""
        return "all_positions"

    def num_classes(self, labels: Labels, layout: Layout) -> int:
        """Words."""
        return 0

    def token_row(self, tokens: Any, counts: Any, layout: Layout) -> Row:
        """Tokens t_0 .. t_n as a row of [L]; counts_i is the weight of predicting t_i.

        Where there are more than L + 1, the last are cut off.
        """
        size = min(len(tokens) - 1, layout.length)
        row = np.full(layout.length + 1, layout.end, np.int32)
        row[: size + 1] = tokens[: size + 1]
        weights = np.zeros(layout.length, np.float32)
        weights[:size] = counts[1 : size + 1]
        segments = layout.padded(np.ones(size, int), 0)
        return {"tokens": row, "segments": segments, "weights": weights}

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """How well the answer was foreseen, token by token."""
        weights, nats, hits = (
            np.concatenate([output[name] for output in outputs])
            for name in ("weights", "nats", "hits")
        )
        tokens = float(weights.sum())
        return {
            "label": example["label"],
            "nats": float((nats * weights).sum()),
            "hits": float((hits * weights).sum()),
            "tokens": tokens,
        }

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """Nats, hits and tokens of each answer, [N, 3]."""
        return np.array([[p["nats"], p["hits"], p["tokens"]] for p in predictions])

    def mistakes(self, predictions: Predictions) -> list[Prediction]:
        """The least foreseen first, per token."""
        return sorted(predictions, key=lambda p: -p["nats"] / max(p["tokens"], 1))

    def describe(self, prediction: Prediction) -> str:
        """The answer, and how well it was foreseen."""
        nats = prediction["nats"] / max(prediction["tokens"], 1)
        return f"{nats:.2f} nats per token for {prediction['label']!r:.80}"

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """How long the answers are."""
        tokens = [p["tokens"] for p in predictions]
        return f"answers of {np.mean(tokens):.1f} tokens in the mean, {max(tokens):.0f} at most\n"


class Seq2Seq(TextGeneration):
    """A text from a text: summaries, translation.

    An encoder-decoder reads the source in its encoder, as config.special_tokens says. A decoder
    reads `END source END target END` and is trained on the target and the END that closes it.
    """

    def example(self, record: Record) -> Example:
        """See `Task`."""
        label = self.read_label(record)
        if not isinstance(label, str):
            raise UserError(f"{record.place}: column {self.label!r} is {label!r:.40}, and no text")
        return {"place": record.place, "texts": self.strings(record), "label": label}

    def placeholder_label(self, record: Record, labels: Labels) -> str:
        """Any text."""
        return "?"

    def texts(self, example: Example) -> list[str]:
        """The source, its columns in one, and the target."""
        return [" ".join(example["texts"]), example["label"]]

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """One row; a source that is too long loses its end."""
        source, target = (each.ids for each in encoded)
        answer = np.append(target, layout.end)
        given, encoder = self.prompt(source, len(answer), layout)
        counts = np.append(np.zeros(len(given)), np.ones(len(answer)))
        row = self.token_row(np.concatenate([given, answer]), counts, layout)
        if encoder is None:
            return [row]
        segments = layout.padded(np.ones(len(encoder), int), 0)
        tokens = layout.padded(encoder, layout.end)
        return [row | {"encoder_tokens": tokens, "encoder_segments": segments}]

    def prompt(self, source: Any, answer: int, layout: Layout) -> tuple[np.ndarray, Any]:
        """What stands before an answer of so many tokens, and what the encoder reads (None: there
        is none).
        """
        if layout.has_encoder:
            tokens = layout.encoder_decoder or encoder_decoder_tokens(None, layout.end)
            return tokens.decoder_start(), tokens.encoder_input(source, layout.length)
        before = layout.special_tokens.before
        room = max(layout.length - answer - len(before), layout.length // 2)
        return np.concatenate([before, source[:room], [layout.end]]).astype(np.int32), None

    @property
    def metrics(self) -> dict[str, Metric]:
        """Also of what an evaluation writes, where it does."""
        return metrics.TEXT_GENERATION | (OVERLAP if self.max_new_tokens else {})

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """Nats, hits and tokens of each answer, [N, 3], and with what was written [N, 34]."""
        foreseen = super().metric_inputs(predictions, labels)
        if not self.max_new_tokens:
            return foreseen
        predicted, true = ([p[name] for p in predictions] for name in ("predicted", "label"))
        return np.concatenate([foreseen, overlaps(predicted, true)], axis=1)

    def describe(self, prediction: Prediction) -> str:
        """Also what was written, where something was."""
        text = f"generated {prediction['predicted']!r:.80}; " if self.max_new_tokens else ""
        return text + super().describe(prediction)

    def abstract_row(self, layout: Layout) -> Row:
        """See `Task`."""
        nothing = Encoded(np.zeros(0, np.int32), np.zeros(1, np.int32))
        return self.rows({}, [nothing, nothing], layout, {})[0]


class Instruction(TextGeneration):
    """A conversation, written out by a template; the loss counts what the assistant says.

    The column of `text` holds a list of {"role": ..., "content": ...}, or is the user's text (with
    further columns below it) that the column of `label` answers. Conversations share rows of
    training, without seeing each other.
    """

    @property
    def shares_rows(self) -> bool:
        """Always, as language models' texts do."""
        return True

    def pack(self, rows: Iterable[Row], layout: Layout) -> Iterator[Row]:
        """See `Task`."""
        return pack(rows, layout)

    def has_label(self, record: Record) -> bool:
        """A conversation has its answers in it."""
        return isinstance(record.values.get(self.text[0]), list) or super().has_label(record)

    def unlabelled_example(self, record: Record, labels: Labels) -> Example:
        """See `Task`."""
        raise UserError(
            f"{record.place} has no answer in column {self.label!r}; this task measures answers, "
            "and `run.py generate` writes them"
        )

    def example(self, record: Record) -> Example:
        """See `Task`."""
        given = self.column(record, self.text[0])
        if not isinstance(given, list):
            asked = "\n\n".join(text for text in self.strings(record) if text)
            answer = str(self.read_label(record))
            given = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for message in given:
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise UserError(f'{record.place}: a message is no {{"role": .., "content": ..}}')
            if message["role"] not in ROLES:
                raise UserError(
                    f"{record.place} has the role {message['role']!r}; use {', '.join(ROLES)}"
                )
            if not isinstance(message["content"], str):
                raise UserError(
                    f"{record.place}: the {message['role']} says {message['content']!r:.40}, and "
                    "no text; fill it in, or remove the message"
                )
        answers = [each["content"] for each in given if each["role"] == "assistant"]
        if not answers:
            raise UserError(f"{record.place} has nothing that the assistant says; remove it")
        return {"place": record.place, "messages": given, "label": answers[-1]}

    def texts(self, example: Example) -> list[str]:
        """The conversation as a built-in template writes it, for reports and a new tokenizer;
        training goes by `tokenize`.
        """
        template = template_of(self.template or "plain", ByteTokenizer())
        return [without_marks(template(example["messages"], False))]

    def tokenize(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Any]:
        """Of each conversation, what it teaches; see `lm.data.chat.Chat.encode_training`."""
        chat = Chat(tokenizer, self.template)
        try:
            return chat.encode_training([example["messages"] for example in examples])
        except UserError as error:
            if len(examples) == 1:
                raise UserError(f"{examples[0]['place']}: {error}") from None
            return [each for one in examples for each in self.tokenize([one], tokenizer)]

    def rows(self, example: Example, encoded: Any, layout: Layout, labels: Numbers) -> list[Row]:
        """One row, mostly. The assistant's content counts, and what closes it.

        A conversation whose first answer begins beyond the row is left out.
        """
        rows = [self.token_row(each.ids, each.counts, layout) for each in encoded]
        return [row for row in rows if row["weights"].any()]

    def abstract_row(self, layout: Layout) -> Row:
        """See `Task`."""
        return self.token_row([layout.end, layout.end], [0, 1], layout)
