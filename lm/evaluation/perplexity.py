"""Perplexity of given texts: how likely a decoder finds every token of them, in nats per token,
bits per byte and perplexity, for each document and for all together.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lm.checkpoints.restore import Restored
from lm.data import sources
from lm.data.files import to_json, write_json
from lm.errors import UserError
from lm.evaluation.scored_row import Row
from lm.evaluation.scoring import likelihoods
from lm.finetuning.adapted import max_text_len_of
from lm.tasks import predicts_words
from lm.tasks.load_examples import source_of

_TOGETHER = 1 << 20  # tokens of windows that are held at once
_SHOWN = 20  # documents that are printed


class Measured(NamedTuple):
    """The likelihood of a document.

    Attributes:
      name: a file's path, or which of the given texts it is.
      nats: -log p of its predicted tokens.
      tokens: how many were predicted: all, but the first where nothing opens a text.
      bytes: of UTF-8 that they stand for.
    """

    name: str
    nats: float
    tokens: int
    bytes: int

    @property
    def metrics(self) -> dict[str, float]:
        """By name; {} but for the counts where no token was predicted.

        "nats_per_token" is nats / tokens, "perplexity" its exponential, and "bits_per_byte" is
        nats / ln 2 / bytes, which does not depend on the tokenizer.
        """
        counts = {"tokens": float(self.tokens), "bytes": float(self.bytes)}
        if not self.tokens:
            return counts
        mean = self.nats / self.tokens
        means = {"nats_per_token": mean, "perplexity": float(np.exp(np.float64(mean)))}
        if self.bytes:
            means["bits_per_byte"] = self.nats / math.log(2) / self.bytes
        return means | counts


def measure(
    run: Restored, documents: Iterable[tuple[str, str]], stride: int | None = None
) -> list[Measured]:
    """The likelihood of each of some named texts.

    A text is opened as its tokenizer has it, and its end is not predicted. Where it is longer than
    the model's L positions, windows of L tokens move over it by `stride`, and each predicts the
    tokens that the one before did not: every token is predicted once, and, but for the first L, has
    at least L - stride tokens before it.

    Args:
      run: a decoder whose head predicts words.
      documents: names and texts.
      stride: from 1 to L; None: L, so that windows lie side by side. Small ones cost L / stride
        times as much, and are nearer to the model's best.

    Raises:
      UserError: the model predicts no next words, `stride` is out of range, or no text has a token
        to predict.
    """
    _check_model(run)
    length = max_text_len_of(run.program.model)
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise UserError(f"--stride={stride} must be from 1 to the model's {length} positions")
    opens = run.opens
    names, counts, nats = [], [], []
    waiting: list[tuple[int, Row]] = []

    def score() -> None:
        rows = [row for _, row in waiting]
        totals, _ = likelihoods(run.program, run.params, rows, run.config.batch_size)
        for (number, _), total in zip(waiting, totals, strict=True):
            nats[number] -= float(total)
        waiting.clear()

    held = 0
    for name, text in documents:
        encoded = run.tokenizer.encode_batch([text])[0]
        ids, begun = encoded.ids, int(not len(opens))
        size = len(text.encode()) - int(encoded.byte_lengths[: min(begun, len(ids))].sum())
        counts.append((max(len(ids) - begun, 0), size))
        names.append(name)
        nats.append(0.0)
        for row in windows(np.concatenate([opens, ids]), len(opens), length, stride):
            waiting.append((len(names) - 1, row))
            held += len(row.inputs)
            if held >= _TOGETHER:
                score()
                held = 0
    if waiting:
        score()
    found = [Measured(name, n, *count) for name, n, count in zip(names, nats, counts, strict=True)]
    if not sum(each.tokens for each in found):
        raise UserError("there is no token to predict; give a longer text")
    return found


def windows(tokens: np.ndarray, given: int, length: int, stride: int) -> Iterator[Row]:
    """Windows of at most `length` inputs over a text, which predict each of its tokens once.

    The first `given` tokens are not predicted, nor is the first of all.
    """
    tokens = np.asarray(tokens, np.int32)
    begin = max(given, 1)
    end = min(max(length + 1, begin), len(tokens))
    while begin < len(tokens):
        seen = max(end - 1 - length, 0)
        places = np.arange(begin - 1 - seen, end - 1 - seen)
        yield Row(tokens[seen : end - 1], places, tokens[begin:end])
        begin, end = end, min(end + stride, len(tokens))


def documents(texts: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and texts: those given themselves, then those of files and other sources."""
    for number, text in enumerate(texts, start=1):
        yield f"--text {number}", text
    for name in names:
        for document in sources.documents(source_of(name)):
            yield document.name, document.text


def total(measured: Sequence[Measured]) -> Measured:
    """All documents together."""
    nats, tokens, size = (
        sum(getattr(each, name) for each in measured) for name in ("nats", "tokens", "bytes")
    )
    return Measured("all", nats, tokens, size)


def lines(measured: Sequence[Measured]) -> list[str]:
    """A table of the documents, or of the first of many; [] where there is one."""
    if len(measured) < 2:
        return []
    names = ("nats_per_token", "bits_per_byte", "perplexity")
    table = ["  " + "".join(f"{name:>16}" for name in (*names, "tokens", "bytes")) + "  document"]
    for each in measured[:_SHOWN]:
        cells = "".join(f"{each.metrics.get(name, math.nan):16,.6g}" for name in names)
        table.append(f"  {cells}{each.tokens:16,}{each.bytes:16,}  {each.name}")
    if len(measured) > _SHOWN:
        table.append(f"  and {len(measured) - _SHOWN} more; --output=DIR keeps all of them")
    return table


def write(measured: Sequence[Measured], folder: epath.Path) -> None:
    """Writes documents.jsonl, an object for each document, and metrics.json, of all."""
    folder.mkdir(parents=True, exist_ok=True)
    objects: list[Any] = [{"document": each.name, **each.metrics} for each in measured]
    text = "".join(to_json(each, ensure_ascii=False) + "\n" for each in objects)
    (folder / "documents.jsonl").write_text(text)
    write_json(folder / "metrics.json", total(measured).metrics)


def _check_model(run: Restored) -> None:
    config = run.config
    if not predicts_words(config):
        raise UserError(
            f"a run of task {config.task.name} chooses among labels and gives no text a "
            "likelihood; give --data=FILE of labelled examples, without --text"
        )
    if config.model.architecture != "decoder":
        raise UserError(
            f"perplexity is of a decoder, which predicts every next token, and "
            f"{config.model.architecture} is none; ask it config.prompt instead"
        )
