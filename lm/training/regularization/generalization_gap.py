"""How much better are training rows fitted than held-out ones? The gap that adaptive regularisation
follows, measured at every evaluation.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lm.config import Config
from lm.data import Dataset, sharded_eval_batches
from lm.training.regularization.adapt import adapted
from lm.training.train_state import TrainState
from lm.training.train_step import Program


def loss_gap(program: Program, params: object, corpus: Dataset, config: Config) -> float:
    """The loss on held-out rows minus that on as many training rows, without dropout, per token.

    The rows are the same at every evaluation, at most config.evaluation.num_examples of each split.
    """
    number = min(len(corpus.rows(split)) for split in ("train", "validation"))
    number = min(number, config.evaluation.num_examples or number)

    def mean(split: str) -> float:
        rows, size = corpus.rows(split), config.batch_size
        batches = sharded_eval_batches(program.mesh, rows, batch_size=size, limit=number)
        sums = [program.eval_loss(params, batch) for batch in batches]
        return float(sum(nats for nats, _ in sums) / sum(weights for _, weights in sums))

    return mean("validation") - mean("train")


def follow_gap(
    state: TrainState, program: Program, corpus: Dataset, config: Config
) -> tuple[TrainState, dict[str, float]]:
    """The state with its penalties as strong as the gap asks for, and both for the log; where they
    do not adapt, the state as it is, and nothing. A gap that is not finite moves nothing.
    """
    settings = config.regularization
    if state.penalty_scale is None:
        return state, {}
    gap = loss_gap(program, state.eval_params, corpus, config)
    strength = float(state.penalty_scale)
    if math.isfinite(gap):
        strength = adapted(strength, gap, settings.penalty_adaptation, settings.target_gap)
    moved = jax.device_put(jnp.asarray(strength, jnp.float32), state.penalty_scale.sharding)
    found = {"eval/generalization_gap": gap, "train/penalty_scale": strength}
    return dataclasses.replace(state, penalty_scale=moved), found
