"""Adapts the penalties to the generalization gap: how much better training rows are fitted than
held-out ones, measured at every evaluation.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lm.data import Dataset, sharded_eval_batches
from lm.training.program import Program
from lm.training.train_state import Params, TrainState

MAX_SCALE = 100.0


def adapted(scale: float, gap: float, rate: float, target: float) -> float:
    """The factor c exp(r (gap - g)), from 1/100 to 100, of the penalties from here on.

    It rests where the gap is the target's, and moves by the same factor for the same difference, up
    or down.

    Args:
      scale: c; 1 at first.
      gap: held-out loss minus training loss, in nats per token or label.
      rate: r, at least 0.
      target: g, the gap that is allowed.
    """
    moved = math.log(scale) + rate * (gap - target)
    return math.exp(min(max(moved, -math.log(MAX_SCALE)), math.log(MAX_SCALE)))


def generalization_gap(program: Program, params: Params, corpus: Dataset) -> float:
    """The loss on held-out rows minus that on as many training rows, without dropout, per token.

    The rows are the same at every evaluation, at most config.evaluation.num_examples of each split.
    """
    config = program.config
    number = min(len(corpus.rows(split)) for split in ("train", "validation"))
    number = min(number, config.evaluation.num_examples or number)

    def mean(split: str) -> float:
        rows, size = corpus.rows(split), config.batch_size
        batches = sharded_eval_batches(program.mesh, rows, batch_size=size, limit=number)
        sums = [jax.block_until_ready(program.eval_loss(params, batch)) for batch in batches]
        return float(sum(nats for nats, _ in sums) / sum(weights for _, weights in sums))

    return mean("validation") - mean("train")


def adapt_penalties(
    state: TrainState, program: Program, corpus: Dataset
) -> tuple[TrainState, dict[str, float]]:
    """The state with its penalties scaled by the gap, and metrics of both for the log; where they
    do not adapt, the state as it is, and nothing. A gap that is not finite changes nothing.
    """
    if state.penalty_scale is None:
        return state, {}
    gap = generalization_gap(program, state.eval_params, corpus)
    scale, config = float(state.penalty_scale), program.config.regularization
    if math.isfinite(gap):
        scale = adapted(scale, gap, config.penalty_adaptation, config.target_gap)
    moved = jax.device_put(jnp.asarray(scale, jnp.float32), state.penalty_scale.sharding)
    metrics = {"eval/generalization_gap": gap, "train/penalty_scale": scale}
    return dataclasses.replace(state, penalty_scale=moved), metrics
