"""Evaluates config.prompt: of the answers to a question, the likeliest one is the prediction."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from scipy.special import log_softmax, logsumexp

from lm.checkpoints.restored import Restored
from lm.config import Config
from lm.devices.hosts import is_main
from lm.errors import UserError
from lm.evaluation.prompting.check import check_prompt
from lm.evaluation.prompting.examples import Example, Examples, draw_shots, read_examples
from lm.evaluation.prompting.query_encoder import LENGTH_NORMALIZERS, query_encoder
from lm.evaluation.prompting.template import Query, Template, parse
from lm.evaluation.scoring import score_rows
from lm.evaluation.task_report import write_report
from lm.tasks import metrics


def evaluate_prompts(run: Restored, folder: epath.Path | None = None) -> dict[str, float]:
    """Evaluates a language model on the questions of config.prompt.

    The score of an answer is s = log p(answer | question) / n, with n its tokens, its bytes, or 1.
    The probabilities of a question's answers are softmax(s); with content-free texts c they are
    softmax(s - log mean_c softmax(s_c)), where s_c are the scores of the same answers with c in
    place of every column (contextual calibration, Zhao et al. 2021, 2102.09690; for answers of the
    question's own, Holtzman et al. 2021, 2104.08315).

    Args:
      folder: where predictions.jsonl, report.txt and report.png are written; None: nowhere.

    Returns:
      "eval/..." of `lm.tasks.metrics.CLASSIFICATION`; for the main one also the bootstrap 95 %
      interval, "eval/..._low" and "eval/..._high"; "eval/examples", the number of questions;
      "eval/truncated", the share of texts that lost their first tokens.

    Raises:
      UserError: a record lacks a column of the config, or there are too few examples to show.
    """
    check_prompt(run.config)
    prompt, examples = run.config.prompt, read_examples(run.config)
    questions = _questions(run.config, examples)
    queries = [query for question in questions for query in question.queries]
    encoded = query_encoder(run.config, run.tokenizer, run.frame, run.opens)(queries)
    rows = [row for each in encoded for row in each.rows]
    totals, _ = score_rows(run.program, run.params, rows, run.config.batch_size)
    first = np.cumsum([0, *(len(each.rows) for each in encoded)])[:-1]
    normalizer = LENGTH_NORMALIZERS[prompt.length_normalization]
    sizes = [normalizer(*each) for each in zip(queries, encoded, strict=True)]
    scores = np.add.reduceat(totals, first) / sizes
    ends = np.cumsum([len(question.queries) for question in questions])
    predictions = [
        question.prediction(calibrate(each.reshape(-1, len(question.example.answers))), examples)
        for question, each in zip(questions, np.split(scores, ends[:-1]), strict=True)
    ]
    task, labels = examples.task, examples.labels
    found = {f"eval/{name}": value for name, value in task.score(predictions, labels).items()}
    inputs = task.metric_inputs(predictions, labels)
    low, high = metrics.interval(task.metrics[task.main_metric], inputs, len(labels))
    if folder is not None and is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_report(folder, examples, predictions)
    return found | {
        f"eval/{task.main_metric}_low": low,
        f"eval/{task.main_metric}_high": high,
        "eval/examples": float(len(predictions)),
        "eval/truncated": float(np.mean([each.truncated for each in encoded])),
    }


def calibrate(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities [A] of A answers, given their scores and those without content, [1 + C, A].

    log_softmax(s - log mean_c softmax(s_c)); with C = 0, log_softmax(s).
    """
    own, free = scores[0], log_softmax(scores[1:], axis=1)
    if len(free):
        own = own - (logsumexp(free, axis=0) - np.log(len(free)))
    return log_softmax(own)


class Question(NamedTuple):
    """A question with its examples and answers.

    Attributes:
      example: the question.
      shots: the numbers of the examples shown before it.
      queries: each answer to it; then each answer to every content-free question.
    """

    example: Example
    shots: Sequence[int]
    queries: Sequence[Query]

    def prediction(self, log_probs: np.ndarray, examples: Examples) -> dict[str, Any]:
        """The prediction, as a line of predictions.jsonl."""
        best, example = int(np.argmax(log_probs)), self.example
        return {
            "place": example.record.place,
            "shown": [examples.shown[number].record.place for number in self.shots],
            "text": self.queries[0]._replace(answer="").text,
            "answers": dict(zip(example.answers, log_probs.tolist(), strict=True)),
            "label": examples.labels[example.label],
            "predicted": examples.labels[best],
            "confidence": float(np.exp(log_probs[best])),
            "nats": -float(log_probs[example.label]),
        }


def _questions(config: Config, examples: Examples) -> list[Question]:
    """All questions, each after examples of its own."""
    prompt, template = config.prompt, parse(config.prompt.template)
    labels = [each.label for each in examples.shown]
    formatted = [_formatted(template, each) for each in examples.shown] if prompt.num_shots else []
    same: dict[Query, set[int]] = {}
    for number, each in enumerate(formatted):
        same.setdefault(each, set()).add(number)
    questions = []
    for number, example in enumerate(examples.questions):
        barred = same.get(_formatted(template, example), set())
        shots = draw_shots(labels, prompt.num_shots, config.seed, number, prompt.balanced, barred)
        if len(shots) < prompt.num_shots:
            raise UserError(
                f"config.prompt.num_shots = {prompt.num_shots}, but there are {len(shots)} other "
                f"examples to show before {example.record.place}; show fewer, or name more in "
                "config.prompt.shots_source"
            )
        shown = "".join(formatted[shot].text + prompt.shots_separator for shot in shots)
        filled = [template.fill(example.record, answer) for answer in example.answers]
        for content in prompt.content_free:
            filled += [template.empty(content, answer) for answer in example.answers]
        queries = [each._replace(before=shown + each.before) for each in filled]
        questions.append(Question(example, shots, queries))
    return questions


def _formatted(template: Template, example: Example) -> Query:
    """An example with its answer."""
    return template.fill(example.record, example.answers[example.label])
