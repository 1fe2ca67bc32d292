"""How good is a model at its task? One pass over the held-out examples: what it says of each,
and metrics.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lm.config import Config
from lm.data import eval_batches
from lm.devices import sharding
from lm.evaluation.answer_generation import written
from lm.tasks.base import Asked, Judged, Outputs
from lm.training.train_step import Program

Predictions = Sequence[dict[str, Any]]


def predictions(program: Program, params: Any, data: Asked, config: Config) -> Predictions:
    """What the model says of each held-out example, in their order; see `Task.predict`.

    config.evaluation.num_examples is how many examples, a sample that is the same for every run; 0:
    all.
    """
    examples = sample(data.examples(), config.evaluation.num_examples)
    wanted = [row for example in examples for row in range(*example["rows"])]
    outputs: dict[int, Outputs] = {}
    batches = eval_batches(
        Chosen(data.rows("validation"), wanted),
        batch_size=config.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for rows in batches:
        found = program.predict(params, sharding.global_batch(program.mesh, rows))
        found = jax.tree.map(np.asarray, found)
        for place in np.flatnonzero(found["row"]):
            outputs[int(found["row"][place]) - 1] = {k: v[place] for k, v in found.items()}
    answers: list[Any] = [{}] * len(examples)
    if data.task.max_new_tokens:
        texts = written(program, params, data, config, examples)
        answers = [{"predicted": text} for text in texts]
    return [
        {"place": example["place"], "text": data.task.shown(example)}
        | data.task.predict(example, [outputs[row] for row in range(*example["rows"])], data.labels)
        | answer
        for example, answer in zip(examples, answers, strict=True)
    ]


def sample(examples: Sequence[Any], rows: int) -> Sequence[Any]:
    """So many of the examples, the same for every run, in their order; 0, or too many: all."""
    if not 0 < rows < len(examples):
        return examples
    order = np.random.default_rng(0).permutation(len(examples))
    return [examples[i] for i in sorted(order[:rows])]


class Chosen:
    """Some rows of a split, by their numbers."""

    def __init__(self, rows: Any, chosen: Sequence[int]):
        self._rows, self._chosen = rows, chosen

    def __len__(self) -> int:
        """How many."""
        return len(self._chosen)

    def __getitem__(self, index: int) -> Any:
        """One of them."""
        return self._rows[self._chosen[index]]


def metrics(data: Judged, found: Predictions) -> dict[str, float]:
    """The task's metrics, each named eval/..., and "eval/examples", over how many."""
    scores = {f"eval/{name}": value for name, value in data.task.score(found, data.labels).items()}
    return scores | {"eval/examples": float(len(found))}
