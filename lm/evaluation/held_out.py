"""Evaluates a model on the held-out rows of a dataset."""

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lm.config import Config
from lm.data import Dataset, RowSource, eval_batches, sharded_eval_batches
from lm.data.batches import eval_order
from lm.data.corpus import Corpus
from lm.data.documents import DocumentRows, Documents
from lm.errors import UserError
from lm.evaluation.document_totals import DocumentTotals
from lm.evaluation.task_evaluation import metrics, predictions
from lm.evaluation.task_report import write_report
from lm.output import OUTPUTS
from lm.tasks.task_data import TaskData
from lm.training.program import Program


class Evaluation(NamedTuple):
    """How good a model is on held-out rows.

    Attributes:
      metrics: by name, "eval/...".
      write_report: writes a report of the predictions into a folder, and returns what it adds to
        the metrics.
    """

    metrics: dict[str, float]
    write_report: Callable[[epath.Path], dict[str, Any]] = lambda folder: {}


def evaluate(
    program: Program, params: Mapping[str, Any], dataset: Dataset, config: Config
) -> Evaluation:
    """Evaluates parameters on the held-out rows of a dataset, as its `evaluator` says."""
    return EVALUATORS[dataset.evaluator](program, params, dataset, config)


def _task(
    program: Program, params: Mapping[str, Any], data: TaskData, config: Config
) -> Evaluation:
    found = predictions(program, params, data, config)
    return Evaluation(metrics(data, found), lambda folder: write_report(folder, data, found))


class HeldOutText(NamedTuple):
    """What an evaluation reads of a corpus.

    Attributes:
      rows: all rows of the split, or those of the chosen documents.
      limit: how many of them are read; None: all.
      documents: of the split; None of pairs and of tasks.
      chosen: which of them are read, [D]; None: what the rows hold.
    """

    rows: RowSource
    limit: int | None
    documents: Documents | None
    chosen: np.ndarray | None = None

    @property
    def num_bytes(self) -> int | None:
        """Bytes of the chosen documents; None where none were chosen."""
        if self.documents is None or self.chosen is None:
            return None
        return int(self.documents.bytes[self.chosen].sum())

    def row_numbers(self) -> list[int]:
        """The numbers in the split of the rows that are read, in their order."""
        order = [int(index) for index in eval_order(self.rows, self.limit)]
        return self.rows.numbers[order].tolist() if isinstance(self.rows, DocumentRows) else order


def held_out_text(dataset: Dataset, config: Config) -> HeldOutText:
    """What config.evaluation reads: num_examples rows, or whole documents of num_bytes bytes.

    Raises:
      UserError: there are fewer bytes, or the dataset is of pairs.
    """
    rows = dataset.rows("validation")
    documents = dataset.documents() if isinstance(dataset, Corpus) else None
    if config.evaluation.num_bytes is None:
        return HeldOutText(rows, config.evaluation.num_examples or None, documents)
    if documents is None:
        raise UserError(
            f"config.evaluation.num_bytes = {config.evaluation.num_bytes} counts bytes of "
            "documents, and the text is of pairs; use config.evaluation.num_examples"
        )
    chosen = documents.sample(config.evaluation.num_bytes)
    return HeldOutText(DocumentRows(rows, documents, chosen), None, documents, chosen)


def likelihood(
    program: Program, params: Mapping[str, Any], corpus: Corpus, config: Config
) -> Evaluation:
    """The likelihood of the held-out rows of text.

    They are config.evaluation.num_examples rows, or those of whole documents of num_bytes bytes.

    Heads that give tokens a probability of exactly zero report the smoothed likelihood, whose nats
    per token are the log of the epsilon-perplexity, and two metrics that need no full support.

    Returns:
      Metrics, and a report documents.json with sums by document (see `DocumentTotals`) where
      targets are the whole text.

      "eval/nats_per_token", of the tokens that the objective predicts; "eval/tokens", their number;
      "eval/unigram_nats", the entropy of their frequencies, the best loss of a model that ignores
      its input. Where they are the whole text, "eval/bits_per_byte", nats / ln 2 / UTF-8 bytes,
      which does not depend on the tokenizer, and "eval/bytes". Where the objective counts hits,
      "eval/accuracy", the share of tokens that were the likeliest. Where the head has no full
      support, also "eval/epsilon_perplexity", "eval/sparsemax_score" and "eval/jensen_shannon",
      means per token; for a synthetic language "eval/excess_nats", the nats per token above those
      of the true distribution on the same tokens (see `true_nats_per_token`).

    Raises:
      UserError: the objective predicts no token of these rows.
    """
    text = held_out_text(corpus, config)
    by_document = None
    if text.documents is not None and program.objective.metric == "eval/bits_per_byte":
        by_document = DocumentTotals(text.documents, text.chosen)
    totals: dict[str, Any] = collections.defaultdict(float)
    rows_each, order = config.batch_size, text.row_numbers()
    batches = sharded_eval_batches(program.mesh, text.rows, batch_size=rows_each, limit=text.limit)
    for k, batch in enumerate(batches):
        sums = dict(program.eval_step(params, batch))
        nats = sums.pop("token_nats", None)
        if by_document:
            numbers = order[k * rows_each : (k + 1) * rows_each]
            by_document.add(numbers, np.asarray(nats, np.float64)[: len(numbers)])
        for name, value in sums.items():
            totals[name] += np.asarray(value, np.float64)
    read = [totals.pop(name) for name in ("tokens", "nats", "bytes", "words")]
    tokens, nats, bytes_of_rows, words = read
    num_bytes = bytes_of_rows if text.num_bytes is None else text.num_bytes
    if not tokens:
        raise UserError(
            f"objective {config.objective} predicts no token of the held-out rows; hold out more "
            "(config.data.validation_fraction, config.evaluation.num_examples), or raise "
            "config.corruption.mask_rate"
        )
    shares = words[words > 0] / tokens
    found = {
        "eval/nats_per_token": nats / tokens,
        "eval/tokens": tokens,
        "eval/unigram_nats": -np.sum(shares * np.log(shares)),
    }
    if program.objective.metric == "eval/bits_per_byte":
        found |= {"eval/bits_per_byte": nats / math.log(2) / num_bytes, "eval/bytes": num_bytes}
    found |= {f"eval/{name}": total / tokens for name, total in totals.items()}
    if not OUTPUTS[config.output.head].full_support:
        found["eval/epsilon_perplexity"] = math.exp(nats / tokens)
    if corpus.language is not None:
        found["eval/excess_nats"] = nats / tokens - true_nats_per_token(corpus, config)
    metrics = {name: float(value) for name, value in found.items()}
    return Evaluation(metrics, by_document.write) if by_document else Evaluation(metrics)


def true_nats_per_token(corpus: Corpus, config: Config) -> float:
    """The loss of the true distribution of a synthetic language on the rows of an evaluation.

    Its mean over all text is the entropy. A model's loss minus this, on the same tokens, is an
    unbiased estimate of the divergence KL(truth || model), with a far smaller variance than the
    loss minus the entropy.
    """
    assert corpus.language is not None
    nats, tokens, text = 0.0, 0.0, held_out_text(corpus, config)
    for rows in eval_batches(text.rows, batch_size=config.batch_size, limit=text.limit):
        real = rows["segments"] > 0
        nats += float(corpus.language.nats(rows["tokens"])[real].sum())
        tokens += float(real.sum())
    return nats / tokens


# By name: of text the likelihood, of a task the metrics of its predictions.
EVALUATORS: dict[str, Callable[[Program, Any, Any, Config], Evaluation]] = {
    "likelihood": likelihood,
    "predictions": _task,
}
