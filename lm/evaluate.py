"""How good is a model on held-out text? One pass over fixed rows of a split."""

import collections
import math
from typing import Any

import jax

from lm import partition
from lm.config import Config
from lm.data import Corpus, eval_batches
from lm.step import Program


def evaluate(program: Program, params: Any, corpus: Corpus, config: Config) -> dict[str, float]:
    """Likelihood of the held-out rows.

    Heads that give words no probability at all report the smoothed likelihood, whose nats per token
    are the log of the epsilon-perplexity, and two measures that need no full support.

    Returns:
      "eval/nats_per_token"; "eval/bits_per_byte", nats / ln 2 over the UTF-8 bytes that the tokens
      stand for, so that tokenizers can be compared; "eval/tokens" and "eval/bytes", over how many;
      where the head has no full support, also "eval/epsilon_perplexity", "eval/sparsemax_score" and
      "eval/jensen_shannon", means per token; of a synthetic language "eval/gap_nats", the nats per
      token above those of the true distribution on the same tokens (see `true_nats_per_token`).
    """
    batches = eval_batches(
        corpus.rows("validation"),
        batch_size=config.batch_size,
        limit=config.evaluation.rows or None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    totals: dict[str, float] = collections.defaultdict(float)
    for rows in batches:
        sums = program.evaluate(params, partition.global_batch(program.mesh, rows))
        for name, value in sums.items():
            totals[name] += float(value)
    nats_per_token = totals["nats"] / totals["tokens"]
    metrics = {
        "eval/nats_per_token": nats_per_token,
        "eval/bits_per_byte": totals["nats"] / math.log(2) / totals["bytes"],
        "eval/tokens": totals["tokens"],
        "eval/bytes": totals["bytes"],
    }
    others = {
        f"eval/{name}": total / totals["tokens"]
        for name, total in totals.items()
        if name not in ("nats", "tokens", "bytes")
    }
    if others:
        others["eval/epsilon_perplexity"] = math.exp(nats_per_token)
    if corpus.language is not None:
        others["eval/gap_nats"] = nats_per_token - true_nats_per_token(corpus, config)
    return metrics | others


def true_nats_per_token(corpus: Corpus, config: Config) -> float:
    """The loss of the true distribution of a synthetic language on the rows of an evaluation.

    Its mean over all text is the entropy. A model's loss minus this, on the same tokens, is an
    unbiased estimate of the divergence KL(truth || model), with a far smaller error than the loss
    minus the entropy: what makes these tokens likely or not cancels.
    """
    assert corpus.language is not None
    nats = tokens = 0.0
    for rows in eval_batches(
        corpus.rows("validation"),
        batch_size=config.batch_size,
        limit=config.evaluation.rows or None,
    ):
        real = rows["segments"] > 0
        nats += float(corpus.language.nats(rows["tokens"])[real].sum())
        tokens += float(real.sum())
    return nats / tokens
