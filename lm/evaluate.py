"""How good is a model on held-out text? One pass over fixed rows of a split."""

import math
from typing import Any

import jax

from lm import partition
from lm.config import Config
from lm.data import Corpus, eval_batches
from lm.step import Program


def evaluate(program: Program, params: Any, corpus: Corpus, config: Config) -> dict[str, float]:
    """Likelihood of the held-out rows.

    Returns:
      "eval/nats_per_token"; "eval/bits_per_byte", nats / ln 2 over the UTF-8 bytes that the tokens
      stand for, so that tokenizers can be compared; "eval/tokens" and "eval/bytes", over how many.
    """
    batches = eval_batches(
        corpus.rows("validation"),
        batch_size=config.batch_size,
        limit=config.evaluation.rows or None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    totals = {"nats": 0.0, "tokens": 0.0, "bytes": 0.0}
    for rows in batches:
        sums = program.evaluate(params, partition.global_batch(program.mesh, rows))
        totals = {name: total + float(sums[name]) for name, total in totals.items()}
    return {
        "eval/nats_per_token": totals["nats"] / totals["tokens"],
        "eval/bits_per_byte": totals["nats"] / math.log(2) / totals["bytes"],
        "eval/tokens": totals["tokens"],
        "eval/bytes": totals["bytes"],
    }
