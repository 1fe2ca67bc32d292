"""Perplexity of given texts under a decoder, of each document and of all together."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lm.checkpoints.restored import Restored
from lm.data import sources
from lm.data.files import to_json, write_json
from lm.errors import UserError
from lm.evaluation.scored_row import ScoredRow
from lm.evaluation.scoring import score_rows
from lm.finetuning.adapted import max_text_len_of
from lm.tasks import predicts_tokens
from lm.tasks.load_examples import source_of

_TOGETHER = 1 << 20  # tokens of windows that are held at once
_SHOWN = 20  # documents that are printed


class DocumentLikelihood(NamedTuple):
    """The likelihood of a document.

    Attributes:
      name: a file's path, or which of the given texts it is.
      nats: -log p of its predicted tokens.
      tokens: how many were predicted: all, except the first where nothing opens a text.
      bytes: the number of UTF-8 bytes that they encode.
    """

    name: str
    nats: float
    tokens: int
    bytes: int

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by name; only the counts where no token was predicted.

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


def document_likelihoods(
    run: Restored, documents: Iterable[tuple[str, str]], stride: int | None = None
) -> list[DocumentLikelihood]:
    """The likelihood of each of some named texts.

    A text starts with the tokens by which its tokenizer opens one, and its end is not predicted.
    Where it is longer than the model's L positions, windows of L tokens move over it by `stride`,
    and each predicts the tokens that the one before did not: every token is predicted once, and,
    except for the first L, has at least L - stride tokens of context.

    Args:
      stride: from 1 to L; None: L, without overlap. Small ones cost L / stride times as much, and
        give each token more context.

    Raises:
      UserError: the model does not predict next tokens, `stride` is out of range, or no text has a
        token to predict.
    """
    if not predicts_tokens(run.config):
        raise UserError(
            f"a run of task {run.config.task.name} predicts labels, so texts have no "
            "likelihood; give --data=FILE of labelled examples, without --text"
        )
    if (architecture := run.config.model.architecture) != "decoder":
        raise UserError(
            f"perplexity needs a decoder, not model.architecture = {architecture}; "
            "use config.prompt instead"
        )
    length = max_text_len_of(run.program.model)
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise UserError(f"--stride={stride} must be from 1 to the model's {length} positions")
    opens = run.opens
    names, counts, nats = [], [], []
    pending: list[tuple[int, ScoredRow]] = []

    def score() -> None:
        rows = [row for _, row in pending]
        totals, _ = score_rows(run.program, run.params, rows, run.config.batch_size)
        for (number, _), total in zip(pending, totals, strict=True):
            nats[number] -= float(total)
        pending.clear()

    held = 0
    for name, text in documents:
        encoded = run.tokenizer.encode_batch([text])[0]
        ids, skipped = encoded.ids, int(not len(opens))
        size = len(text.encode()) - int(encoded.byte_lengths[: min(skipped, len(ids))].sum())
        counts.append((max(len(ids) - skipped, 0), size))
        names.append(name)
        nats.append(0.0)
        for row in windows(np.concatenate([opens, ids]), len(opens), length, stride):
            pending.append((len(names) - 1, row))
            held += len(row.inputs)
            if held >= _TOGETHER:
                score()
                held = 0
    if pending:
        score()
    columns = zip(names, nats, counts, strict=True)
    found = [DocumentLikelihood(name, total, *sizes) for name, total, sizes in columns]
    if not sum(each.tokens for each in found):
        raise UserError("the texts have no token to predict; give a longer text")
    return found


def windows(tokens: np.ndarray, given: int, length: int, stride: int) -> Iterator[ScoredRow]:
    """Windows of at most `length` inputs over a text, which predict each of its tokens once, except
    the first `given` and the very first.
    """
    tokens = np.asarray(tokens, np.int32)
    begin = max(given, 1)
    end = min(max(length + 1, begin), len(tokens))
    while begin < len(tokens):
        start = max(end - 1 - length, 0)
        positions = np.arange(begin - 1 - start, end - 1 - start)
        yield ScoredRow(tokens[start : end - 1], positions, tokens[begin:end])
        begin, end = end, min(end + stride, len(tokens))


def read_documents(texts: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and texts: `texts`, then those of the files and other sources in `names`."""
    for number, text in enumerate(texts, start=1):
        yield f"--text {number}", text
    for name in names:
        for document in sources.documents(source_of(name)):
            yield document.name, document.text


def total(documents: Sequence[DocumentLikelihood]) -> DocumentLikelihood:
    """The sum over all documents."""
    nats, tokens, size = (
        sum(getattr(each, name) for each in documents) for name in ("nats", "tokens", "bytes")
    )
    return DocumentLikelihood("all", nats, tokens, size)


def format_table(documents: Sequence[DocumentLikelihood]) -> list[str]:
    """The lines of a table of the documents, or of the first of many; [] for one document."""
    if len(documents) < 2:
        return []
    names = ("nats_per_token", "bits_per_byte", "perplexity")
    table = ["  " + "".join(f"{name:>16}" for name in (*names, "tokens", "bytes")) + "  document"]
    for each in documents[:_SHOWN]:
        cells = "".join(f"{each.metrics.get(name, math.nan):16,.6g}" for name in names)
        table.append(f"  {cells}{each.tokens:16,}{each.bytes:16,}  {each.name}")
    if len(documents) > _SHOWN:
        table.append(f"  and {len(documents) - _SHOWN} more; --output=DIR keeps all of them")
    return table


def write_likelihoods(documents: Sequence[DocumentLikelihood], folder: epath.Path) -> None:
    """Writes documents.jsonl, an object for each document, and metrics.json, of all."""
    folder.mkdir(parents=True, exist_ok=True)
    objects: list[Any] = [{"document": each.name, **each.metrics} for each in documents]
    text = "".join(to_json(each, ensure_ascii=False) + "\n" for each in objects)
    (folder / "documents.jsonl").write_text(text)
    write_json(folder / "metrics.json", total(documents).metrics)
