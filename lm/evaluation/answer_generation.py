"""Generates answers to the held-out examples of a task, by greedy decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.config import Config
from lm.generation import generate
from lm.tasks.base import Example, LabelledRows
from lm.training.program import Program


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
        words = generate(
            program.model,
            params,
            prompts,
            max_new_tokens=task.max_new_tokens,
            temperature=0.0,
            sources=memories if data.layout.has_encoder else None,
        )
        for ids in np.stack(list(words), axis=1):
            ends = np.flatnonzero(ids == data.tokenizer.end)
            kept = ids[: ends[0]] if len(ends) else ids
            # As the answers that it learned from, it is a text of its own.
            answers.append(data.tokenizer.decode(kept, final=False))
    return answers
