"""Collects predictions on held-out text: all confidences, a sample of states and their tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.checkpoints.restored import Restored
from lm.data import sharded_eval_batches
from lm.devices.hosts import to_host
from lm.evaluation.held_out import held_out_text

_ENTRIES = 2**24  # log-probabilities held at once


class Contexts(NamedTuple):
    """Predictions on held-out text.

    Attributes:
      confidence: [N], probability of the likeliest token, of all N predictions.
      correct: [N], whether it was the target.
      hidden: [n, D], hidden states of a sample, spread evenly over the text.
      inputs, targets: [n], the tokens at the positions of the sample and those to predict.
    """

    confidence: np.ndarray
    correct: np.ndarray
    hidden: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray


def collect_contexts(run: Restored, sample: int) -> Contexts:
    """One pass over the text of an evaluation; `sample` is the number of hidden states to keep."""
    model, config = run.program.model, run.config
    vocab_size = run.corpus.tokenizer.vocab_size

    @jax.jit
    def predict(params, rows):
        batch = run.program.objective(rows, jax.random.key(0))
        states: Any = model.apply({"params": params}, batch, method="head_inputs")
        hidden = states.reshape(batch.targets.size, -1)

        def score(pair):
            state, target = pair
            values = model.apply({"params": params}, state[None], method="token_log_probs")[0]
            return jnp.exp(jnp.max(values)), jnp.argmax(values) == target

        targets, inputs = batch.targets.ravel(), batch.inputs.ravel()
        scores = jax.lax.map(score, (hidden, targets), batch_size=max(1, _ENTRIES // vocab_size))
        return *scores, hidden, inputs, targets, batch.weights.ravel() > 0

    text, size = held_out_text(run.corpus, config), config.batch_size
    batches = -(-len(text.row_numbers()) // size)
    chance, found = np.random.default_rng(0), []
    every = sharded_eval_batches(run.program.mesh, text.rows, batch_size=size, limit=text.limit)
    for index, batch in enumerate(every):
        *arrays, real = map(to_host, predict(run.params, batch))
        confidence, correct, *states = (array[real] for array in arrays)
        share = sample * (index + 1) // batches - sample * index // batches
        chosen = chance.permutation(len(confidence))[:share]
        found.append((confidence, correct, *(array[chosen] for array in states)))
    return Contexts(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
