"""Evaluates a model on the held-out examples of a task: predictions, answers and metrics."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.batches import RowSubset
from lm.evaluation.row_outputs import row_outputs
from lm.generation import generate
from lm.tasks.base import Example, LabelledData, LabelledRows
from lm.training.program import Program

Predictions = Sequence[dict[str, Any]]


def predictions(
    program: Program, params: Mapping[str, Any], data: LabelledRows, config: Config
) -> Predictions:
    """What the model says of each held-out example, in their order; see `Task.predict`.

    config.evaluation.num_examples is how many examples, a sample that is the same for every run; 0:
    all.
    """
    examples = sample(data.examples(), config.evaluation.num_examples)
    wanted = [row for example in examples for row in range(*example["rows"])]
    rows = RowSubset(data.rows("validation"), wanted)
    predict = functools.partial(program.predict, params)
    found = row_outputs(program.mesh, rows, config.batch_size, predict)
    outputs = {wanted[index]: each for index, each in found}
    answers: list[Any] = [{}] * len(examples)
    if data.task.max_new_tokens:
        texts = generate_answers(program, params, data, config, examples)
        answers = [{"predicted": text} for text in texts]
    return [
        {"place": example["place"], "text": data.task.display_text(example)}
        | data.task.predict(example, [outputs[row] for row in range(*example["rows"])], data.labels)
        | answer
        for example, answer in zip(examples, answers, strict=True)
    ]


def generate_answers(
    program: Program,
    params: Mapping[str, Any],
    data: LabelledRows,
    config: Config,
    examples: Sequence[Example],
) -> list[str]:
    """An answer of at most config.task.max_new_tokens to each example, a batch at a time."""
    task: Any = data.task
    texts = data.tokenizer.encode_batch([task.texts(example)[0] for example in examples])
    longest = task.max_new_tokens + 1  # with what ends it, as in training
    asked = [task.prompt(text.ids, longest, data.layout) for text in texts]
    answers: list[str] = []
    for begin in range(0, len(asked), config.batch_size):
        prompts, memories = zip(*asked[begin : begin + config.batch_size], strict=True)
        options = {"sources": memories if data.layout.has_encoder else None, "temperature": 0.0}
        options["max_new_tokens"] = task.max_new_tokens
        tokens = list(generate(program.model, params, prompts, **options))
        for ids in np.stack(tokens, axis=1):
            ends = np.flatnonzero(ids == data.tokenizer.end)
            kept = ids[: ends[0]] if len(ends) else ids
            # As the answers that it learned from, it is a text of its own.
            answers.append(data.tokenizer.decode(kept, final=False))
    return answers


def sample(examples: Sequence[Any], rows: int) -> Sequence[Any]:
    """So many of the examples, the same for every run, in their order; 0, or too many: all."""
    if not 0 < rows < len(examples):
        return examples
    order = np.random.default_rng(0).permutation(len(examples))
    return [examples[i] for i in sorted(order[:rows])]


def metrics(data: LabelledData, found: Predictions) -> dict[str, float]:
    """The task's metrics, each named eval/..., and "eval/examples", over how many."""
    scores = {f"eval/{name}": value for name, value in data.task.score(found, data.labels).items()}
    return scores | {"eval/examples": float(len(found))}
