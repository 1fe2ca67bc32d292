"""Draws how one run learned: its training loss and what was held out, over the steps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from lm.data.files import replacing
from lm.training.metric_writer import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # slow to import

# What is measured on held-out text or examples in the units of the training loss.
_LOSSES = ("eval/nats_per_token", "eval/nats_per_label", "eval/mean_squared_error")
_TRAINING, _HELD_OUT, _JUDGED = "#9A9A9A", "#CC6677", "#332288"
_MANY = 100  # points of the training loss above which their running mean is drawn too


def draw_curve(workdir: epath.PathLike, judged: str) -> None:
    """Writes curve.png from the metrics.jsonl of a run.

    Left, the training loss and, where it is measured in the same units, the held-out loss; right,
    the metric `judged`, such as "eval/accuracy", where it is another.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    workdir = epath.Path(workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    loss = next((name for name in _LOSSES if any(name in record for record in records)), None)
    panels = 1 + (judged != loss and any(judged in record for record in records))
    figure = Figure(figsize=(5.6 * panels, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, panels))
    _draw_losses(axes[0], records, loss)
    if panels > 1:
        axes[1].plot(*series(records, judged), "o-", color=_JUDGED, markersize=4)
        axes[1].set_ylabel(f"held out: {_words(judged)}")
    for each in axes:
        each.set_xlabel("step")
        each.set_xlim(left=0)
        each.locator_params(axis="x", integer=True)
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    with replacing(workdir / "curve.png") as partial, partial.open("wb") as file:
        figure.savefig(file, format="png")


def series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a metric was recorded, [T], and its values, [T]."""
    found = [(record["step"], record[name]) for record in records if name in record]
    return np.array([step for step, _ in found]), np.array([x for _, x in found], float)


def _draw_losses(axes: "Axes", records: Sequence[Mapping[str, Any]], loss: str | None) -> None:
    steps, values = series(records, "train/loss")
    if len(steps) > _MANY:
        axes.plot(steps, values, color=_TRAINING, linewidth=0.6, alpha=0.5)
        width = len(steps) // (_MANY // 2)
        means = np.convolve(values, np.ones(width) / width, "valid")
        first = width // 2  # a mean stands in the middle of what it is of
        axes.plot(
            steps[first : first + len(means)],
            means,
            color="black",
            linewidth=1.4,
            label="training, mean",
        )
    else:
        axes.plot(steps, values, color="black", linewidth=1.4, label="training")
    if loss is not None:
        label = f"held out: {_words(loss)}"
        axes.plot(*series(records, loss), "o-", color=_HELD_OUT, markersize=4, label=label)
    axes.set_ylabel("loss (nats)" if loss != _LOSSES[2] else "loss (squared error)")
    axes.legend(frameon=False)


def _words(metric: str) -> str:
    return metric.removeprefix("eval/").replace("_", " ")
