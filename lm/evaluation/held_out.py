"""Evaluates a model on its held-out data: the likelihood of text, or the metrics of a task."""

import collections
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.config import Config
from lm.data import Corpus, eval_batches
from lm.devices import sharding
from lm.errors import UserError
from lm.evaluation.task_evaluation import Predictions, metrics, predictions
from lm.output import OUTPUTS
from lm.tasks.prepare import TaskData
from lm.training.train_step import Program


class Evaluation(NamedTuple):
    """Metrics by name; for a task, also the predictions of every example."""

    metrics: dict[str, float]
    predictions: Predictions = ()


def evaluate(
    program: Program, params: Any, corpus: Corpus | TaskData, config: Config
) -> Evaluation:
    """The likelihood of the held-out rows, or a task's metrics on its held-out examples."""
    if isinstance(corpus, TaskData):
        found = predictions(program, params, corpus, config)
        return Evaluation(metrics(corpus, found), found)
    return Evaluation(likelihood(program, params, corpus, config))


def likelihood(program: Program, params: Any, corpus: Corpus, config: Config) -> dict[str, float]:
    """The likelihood of the held-out rows of text.

    Heads that give tokens a probability of exactly zero report the smoothed likelihood, whose nats
    per token are the log of the epsilon-perplexity, and two metrics that need no full support.

    Returns:
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
    batches = eval_batches(
        corpus.rows("validation"),
        batch_size=config.batch_size,
        limit=config.evaluation.num_examples or None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    totals: dict[str, Any] = collections.defaultdict(float)
    for rows in batches:
        sums = program.eval_step(params, sharding.global_batch(program.mesh, rows))
        for name, value in sums.items():
            totals[name] += np.asarray(value, np.float64)
    tokens, nats, size, words = (totals.pop(name) for name in ("tokens", "nats", "bytes", "words"))
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
        found |= {"eval/bits_per_byte": nats / math.log(2) / size, "eval/bytes": size}
    found |= {f"eval/{name}": total / tokens for name, total in totals.items()}
    if not OUTPUTS[config.output.head].full_support:
        found["eval/epsilon_perplexity"] = math.exp(nats / tokens)
    if corpus.language is not None:
        found["eval/excess_nats"] = nats / tokens - true_nats_per_token(corpus, config)
    return {name: float(value) for name, value in found.items()}


def true_nats_per_token(corpus: Corpus, config: Config) -> float:
    """The loss of the true distribution of a synthetic language on the rows of an evaluation.

    Its mean over all text is the entropy. A model's loss minus this, on the same tokens, is an
    unbiased estimate of the divergence KL(truth || model), with a far smaller variance than the
    loss minus the entropy.
    """
    assert corpus.language is not None
    nats = tokens = 0.0
    for rows in eval_batches(
        corpus.rows("validation"),
        batch_size=config.batch_size,
        limit=config.evaluation.num_examples or None,
    ):
        real = rows["segments"] > 0
        nats += float(corpus.language.nats(rows["tokens"])[real].sum())
        tokens += float(real.sum())
    return nats / tokens
