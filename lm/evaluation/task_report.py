"""Writes the report of a task: predictions as JSON lines, metrics with mistakes, and a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from lm.data.files import replacing, to_json, write_text
from lm.errors import counted
from lm.evaluation.calibration import calibration
from lm.tasks import metrics
from lm.tasks.base import LabelledData

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # slow to import

MISTAKES = 20  # shown on the page
BINS = 10  # of confidence
MOST = 30  # classes in a confusion matrix


def write_report(
    folder: epath.PathLike, data: LabelledData, predictions: Sequence[Any]
) -> dict[str, Any]:
    """Writes predictions.jsonl, report.txt and report.png; returns the main metric's interval.

    Returns:
      {"interval": [low, high]}: 95 %, of the main metric, over resampled examples.
    """
    folder = epath.Path(folder)
    write_predictions(folder, predictions)
    task, labels = data.task, data.labels
    inputs = task.metric_inputs(predictions, labels)
    low, high = metrics.interval(task.metrics[task.main_metric], inputs, len(labels))
    scores = task.score(predictions, labels)
    source = data.manifest.get("held_out") or data.manifest["source"]
    page = [f"{counted(len(predictions), 'example')} held out of {source}", ""]
    page += [f"{name:20} {value:.4f}" for name, value in scores.items()]
    between = f"95 % between {low:.4f} and {high:.4f} (bootstrap over examples)"
    page += [f"{task.main_metric}: {between}", "", task.report(predictions, labels)]
    page += [f"The {MISTAKES} worst mistakes", ""]
    mistakes = task.mistakes(predictions)[:MISTAKES]
    for each in mistakes:
        text = " ".join(str(each["text"]).split())
        page += [f"{each['place']}: {task.describe(each)}", f"    {text[:200]}"]
    if not mistakes:
        page.append("none")
    write_text(folder / "report.txt", "\n".join(page) + "\n")
    _draw(folder / "report.png", data, predictions)
    return {"interval": [low, high]}


def write_predictions(folder: epath.Path, predictions: Sequence[Any]) -> None:
    """Writes predictions.jsonl."""
    lines = (to_json(each, ensure_ascii=False) for each in predictions)
    write_text(folder / "predictions.jsonl", "".join(f"{line}\n" for line in lines))


def _draw(path: epath.Path, data: LabelledData, predictions: Sequence[Any]) -> None:
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    task = data.task
    if task.real_targets:
        _scatter(left, predictions)
    elif data.labels:
        _confusion(left, task.label_pairs(predictions), data.labels)
    else:
        _histogram(left, data, predictions)
    if "confidence" in predictions[0]:
        _reliability(right, *task.confidences(predictions), task.confidence_of)
    elif task.real_targets:
        _errors(right, predictions)
    else:
        right.set_axis_off()
    with replacing(path) as partial, partial.open("wb") as file:
        figure.savefig(file, format="png")


def _scatter(axes: "Axes", predictions: Sequence[Any]) -> None:
    truth, predicted = np.array([[p["label"], p["predicted"]] for p in predictions]).T
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(ends, ends, color="#9A9A9A", linewidth=1)
    axes.plot(truth, predicted, ".", color="#332288", markersize=3, alpha=0.5)
    axes.set(xlabel="label", ylabel="predicted")


def _errors(axes: "Axes", predictions: Sequence[Any]) -> None:
    axes.hist([p["predicted"] - p["label"] for p in predictions], bins=40, color="#332288")
    axes.set(xlabel="predicted minus label", ylabel="examples")


def _confusion(axes: "Axes", pairs: Sequence[tuple[Any, Any]], labels: Sequence[str]) -> None:
    """Shares of each true label's row; the commonest labels where there are many."""
    count = {label: sum(true == label for true, _ in pairs) for label in labels}
    shown = sorted(sorted(labels, key=lambda label: -count[label])[:MOST], key=labels.index)
    number = {label: i for i, label in enumerate(shown)}
    table = np.zeros((len(shown), len(shown)))
    for true, predicted in pairs:
        if true in number and predicted in number:
            table[number[true], number[predicted]] += 1
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(shown) <= 8:
        for i, j in np.ndindex(*table.shape):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=7)
    axes.set_yticks(range(len(shown)), shown, fontsize=7)
    axes.set(xlabel="predicted", ylabel="label")


def _histogram(axes: "Axes", data: LabelledData, predictions: Sequence[Any]) -> None:
    """The main metric of every example alone."""
    task, inputs = data.task, data.task.metric_inputs(predictions, data.labels)
    measure = task.metrics[task.main_metric]
    axes.hist([measure(row[None], 0) for row in inputs], bins=40, color="#332288")
    axes.set(xlabel=task.main_metric.replace("_", " "), ylabel="examples")


def _reliability(
    axes: "Axes", confidences: Sequence[float], is_right: Sequence[bool], what: str
) -> None:
    """How often predictions of each confidence are right; empty bins are not drawn."""
    found = calibration(np.array(confidences), np.array(is_right), BINS)
    axes.plot([0, 1], [0, 1], color="#9A9A9A", linewidth=1)
    look = {"s": 20 + 300 * found.counts / len(confidences), "color": "#332288", "alpha": 0.7}
    axes.scatter(found.confidence, found.accuracy, clip_on=False, **look)
    axes.set_title(f"expected calibration error {found.error:.3f}", fontsize=10)
    axes.set(xlim=(0, 1.02), xlabel=f"confidence: the probability of {what}")
    axes.set(
        ylim=(0, 1.02), ylabel=f"share of {counted(len(is_right), 'prediction')} that is right"
    )
