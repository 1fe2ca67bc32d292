"""Predicts the examples of further files with a run of a task; labelled ones are also scored."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
from etils import epath

from lm.checkpoints.restored import Restored
from lm.config import Config, override
from lm.data.files import write_json
from lm.devices.hosts import from_main, is_main
from lm.errors import UserError
from lm.evaluation.task_evaluation import metrics, predictions
from lm.evaluation.task_report import write_predictions, write_report
from lm.tasks.base import Prediction, Task
from lm.tasks.check import most_written
from lm.tasks.load_examples import UNLABELLED, LoadedExamples, encoded_in_parts, read_examples

_TOGETHER = 2000  # examples whose rows are held at once


class PredictionResult(NamedTuple):
    """Predictions of examples and their metrics.

    Attributes:
      data: the examples.
      predictions: a line of predictions.jsonl for each, in order; without a label only the fields
        that need none.
      labelled: the predictions of examples with a label.
      metrics: of these, "eval/..." by name; {} where there are none.
    """

    data: LoadedExamples
    predictions: list[Prediction]
    labelled: list[Prediction]
    metrics: dict[str, float]

    @property
    def left_out(self) -> int:
        """The number of examples without a row, as their answer begins beyond its end."""
        return len(self.data.kept) - len(self.predictions)


def predict(
    run: Restored,
    sources: Sequence[str],
    *,
    need_labels: bool = False,
    max_new_tokens: int | None = None,
) -> PredictionResult:
    """Predicts all examples of some files.

    Args:
      sources: files, patterns of files, or other sources of labelled examples.
      need_labels: whether an example without a label is an error.
      max_new_tokens: the longest answer of a task that generates answers; None: as in training,
        or 256 where training generated none, or as many as fit.

    Raises:
      UserError: the run has no task; an example cannot be read, or has a label that the run does
        not know.
    """
    config = run.config
    if not config.task.name:
        raise UserError(
            "this run is a language model without config.task.name, and has no labels to predict; "
            "`run.py generate` continues texts"
        )
    config = override(config, {"evaluation.num_examples": 0})
    task, labels, layout = run.task_layout
    task = _generating(task, config, need_labels, max_new_tokens)
    examples = read_examples(config, task, labels, layout, sources)
    settled, _ = task.infer_options(examples)  # a run has this done, an imported checkpoint has not
    task = dataclasses.replace(task, **settled)
    if need_labels:
        without = [example["place"] for example in examples if UNLABELLED in example]
        if without:
            raise UserError(
                f"{len(without)} of {len(examples)} examples have no label in column "
                f"{task.label!r}, the first {without[0]}; fill it in, or use `run.py predict`, "
                "which needs none"
            )
    source = {"source": ", ".join(sources)}
    data = LoadedExamples(source, run.tokenizer, task, layout, labels, examples, [])
    found: list[Prediction] = []
    labelled: list[Prediction] = []
    with jax.set_mesh(run.program.mesh):
        for part in encoded_in_parts(data, _TOGETHER):
            predicted = predictions(run.program, run.params, part, config)
            for example, each in zip(part.kept, predicted, strict=True):
                if UNLABELLED in example:
                    found.append({k: v for k, v in each.items() if k not in task.label_dependent})
                else:
                    found.append(each)
                    labelled.append(each)
    return PredictionResult(data, found, labelled, metrics(data, labelled) if labelled else {})


def evaluate_files(
    run: Restored, sources: Sequence[str], folder: epath.Path | None
) -> dict[str, float]:
    """The metrics of a run on the labelled examples of files; `folder` gets the report."""
    check_new_folder(folder)
    found = predict(run, sources, need_labels=True)
    if folder is not None and is_main():
        write_result(found, folder)
    return found.metrics


def check_new_folder(folder: epath.Path | None) -> None:
    """Raises UserError where a folder to write to is not empty."""
    if folder is not None and from_main(lambda: not _is_free(folder)):
        raise UserError(f"{folder} is not empty; give a new folder to write to")


def _is_free(folder: epath.Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def write_result(predicted: PredictionResult, folder: epath.Path) -> None:
    """Writes predictions.jsonl; with labels also metrics.json, report.txt and report.png."""
    folder.mkdir(parents=True, exist_ok=True)
    if predicted.labelled:
        interval = write_report(folder, predicted.data, predicted.labelled)
        about = {"data": predicted.data.manifest["source"]}
        write_json(folder / "metrics.json", predicted.metrics | interval | about)
    write_predictions(folder, predicted.predictions)


def predict_files(
    run: Restored, sources: Sequence[str], folder: epath.Path, max_new_tokens: int | None
) -> list[str]:
    """Predicts the examples of files, writes the result, and describes it in lines."""
    predicted = predict(run, sources, max_new_tokens=max_new_tokens)
    if is_main():
        write_result(predicted, folder)
    return describe(predicted, folder)


def describe(predicted: PredictionResult, folder: epath.Path) -> list[str]:
    """The result in lines."""
    number, labelled = len(predicted.predictions), len(predicted.labelled)
    lines = [f"written: {folder}, {number} predictions"]
    if predicted.left_out:
        lines[0] += f"; {predicted.left_out} examples do not fit into a row and were left out"
    if labelled:
        name = predicted.data.task.main_metric
        shown = f"{predicted.metrics[f'eval/{name}']:.4f} {name.replace('_', ' ')}"
        lines.append(f"eval: {shown} on the {labelled} with a label")
    return lines


def _generating(task: Task, config: Config, need_labels: bool, max_new_tokens: int | None) -> Task:
    """The task, set to generate answers of as many tokens as requested, where it generates."""
    if config.task.name != "seq2seq":
        if max_new_tokens is not None:
            raise UserError(
                f"--max_new_tokens={max_new_tokens} is of task seq2seq, which generates answers, "
                f"and task {config.task.name} does not; leave it out"
            )
        return task
    limit = most_written(config)
    if max_new_tokens is None:
        max_new_tokens = task.max_new_tokens or (0 if need_labels else min(256, limit))
    elif max_new_tokens > limit:
        raise UserError(
            f"--max_new_tokens={max_new_tokens} leaves a source too few positions; "
            f"use at most {limit}"
        )
    return dataclasses.replace(task, max_new_tokens=max_new_tokens)
